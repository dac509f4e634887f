// One model's side of a conversation, drawn from data as text; while an answer grows only its last words are changed.
const mount = element.querySelector('.mount');
const node = (tag, className = '', text = '') => Object.assign(document.createElement(tag), { className, textContent: text });
const head = node('header'), talk = node('div', 'talk'), ended = node('div', 'spoken');
const who = node('div', 'who'), about = node('span', 'about'), stop = node('button', 'stop', 'Stop');
head.append(who, stop);
talk.tabIndex = 0;
talk.setAttribute('role', 'region');
ended.setAttribute('role', 'status');  // says when an answer has ended; the words themselves would drown each other
mount.append(head, talk, ended);
let low = true;  // whether the end is in view: then it stays there
let drawn = '', titled = '', newest = '', growing = false;  // what stands above the growing answer, in the header, at the end

// The header stays while an answer grows: a button that is replaced cannot be pressed.
function title(v) {
  const now = JSON.stringify([v.name, v.href, v.about]);
  if (now !== titled) {
    const name = v.href ? Object.assign(node('a', '', v.name), { href: v.href }) : node('b', '', v.name);
    name.title = v.name;
    about.textContent = about.title = v.about;
    stop.setAttribute('aria-label', `Stop the answer of ${v.name}`);
    talk.setAttribute('aria-label', `Answers of ${v.name}`);
    who.replaceChildren(name, about);
    titled = now;
  }
  stop.hidden = !v.growing;
}

function tell(v) {
  if (growing && !v.growing) ended.textContent = `${v.name} has ended: ${v.turns[v.turns.length - 1]?.note}`;
  else if (v.growing) ended.textContent = '';
  growing = v.growing;
}

function foot(turn) {
  const bar = node('footer', `num ${turn.state}`);
  bar.append(node('span', 'figures', turn.note));
  if (turn.link) bar.append(Object.assign(node('a', '', 'routing'), { href: turn.link, title: 'Which experts spoke, token by token' }));
  if (turn.copy) bar.append(Object.assign(node('button', 'copy', 'copy'), { title: 'Copy this answer' }));
  return bar;
}

function block(turn) {
  const box = node('article'), said = node('div', 'said', turn.text);
  box.append(node('div', 'asked', turn.question), said);
  if (turn.problem) {
    const wrong = node('div', 'problem');
    wrong.setAttribute('role', 'alert');
    wrong.append(node('b', '', turn.problem));
    box.append(wrong);
  }
  box.append(foot(turn));
  return box;
}

// Nothing asked yet: what could be, or with an empty studio what to do next.
function nothing(v) {
  if (!v.invite) return node('p', 'none', v.empty);
  const box = node('div', 'empty'), way = node('p');
  way.append(Object.assign(node('a', 'button', v.invite.label), { href: v.invite.href }));
  box.append(node('h3', '', v.invite.title), node('p', '', v.invite.text), way);
  return box;
}

function draw() {
  const v = props.value;
  if (!v) return;
  const below = talk.scrollHeight - talk.scrollTop;
  title(v);
  tell(v);
  const last = v.turns[v.turns.length - 1], above = JSON.stringify([v.name, v.earlier, v.turns.slice(0, -1), last?.question]);
  const anew = above !== drawn || !last;
  if (anew) {
    talk.replaceChildren(...(v.turns.length ? v.turns.map(block) : [nothing(v)]));
    if (v.earlier && !v.growing) talk.prepend(node('button', 'earlier', 'Show earlier turns'));
    drawn = above;
  } else {
    const box = talk.lastElementChild, said = box.querySelector('.said');
    if (!last.problem && last.text.startsWith(said.textContent)) {
      if (last.text !== said.textContent) said.append(last.text.slice(said.textContent.length));
      box.lastElementChild.replaceWith(foot(last));
    } else box.replaceWith(block(last));
  }
  const same = newest === (newest = JSON.stringify(last));
  if (anew && same && last) talk.scrollTop = talk.scrollHeight - below;  // earlier turns came above: what is read stays
  else if (low || anew) talk.scrollTop = talk.scrollHeight;
}

element.addEventListener('click', event => {
  const button = event.target.closest('button');
  if (!button) return;
  if (button === stop) return trigger('select', { stop: true });
  if (button.className === 'earlier') return trigger('expand', {});
  const said = button.closest('article').querySelector('.said').textContent;
  navigator.clipboard?.writeText(said).then(() => { button.textContent = 'copied'; setTimeout(() => { button.textContent = 'copy'; }, 1200); });
});
// A scroll told after a change of width is not the reader's: the words have just been wrapped anew.
let width = 0;
talk.addEventListener('scroll', () => {
  if (talk.clientWidth === width) low = talk.scrollHeight - talk.scrollTop - talk.clientHeight < 40;
}, { passive: true });
new ResizeObserver(() => {
  width = talk.clientWidth;
  if (low) talk.scrollTop = talk.scrollHeight;
}).observe(talk);
watch('value', draw);
draw();
