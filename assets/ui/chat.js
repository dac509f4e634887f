// One model's side of a conversation, drawn from data as text; while an answer grows only its last words are changed.
const mount = element.querySelector('.mount');
const node = (tag, className = '', text = '') => Object.assign(document.createElement(tag), { className, textContent: text });
const head = node('header'), talk = node('div', 'talk');
talk.tabIndex = 0;
talk.setAttribute('role', 'log');
mount.append(head, talk);
let drawn = '';  // what stands above the growing answer

function title(v) {
  const name = v.href ? Object.assign(node('a', '', v.name), { href: v.href }) : node('b', '', v.name);
  const stop = node('button', 'stop', 'Stop');
  stop.hidden = !v.growing;
  stop.setAttribute('aria-label', `Stop the answer of ${v.name}`);
  head.replaceChildren(name, node('span', 'about', v.about), stop);
  talk.setAttribute('aria-label', `Answers of ${v.name}`);
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

function draw() {
  const v = props.value;
  if (!v) return;
  const low = talk.scrollHeight - talk.scrollTop - talk.clientHeight < 40;
  title(v);
  const last = v.turns[v.turns.length - 1], above = JSON.stringify([v.name, v.turns.slice(0, -1), last?.question]);
  if (above !== drawn || !last) {
    talk.replaceChildren(...(v.turns.length ? v.turns.map(block) : [node('p', 'none', v.empty)]));
    if (v.earlier) talk.prepend(node('p', 'earlier', v.earlier));
    drawn = above;
  } else {
    const box = talk.lastElementChild, said = box.querySelector('.said');
    if (!last.problem && last.text.startsWith(said.textContent)) {
      if (last.text !== said.textContent) said.append(last.text.slice(said.textContent.length));
      box.lastElementChild.replaceWith(foot(last));
    } else box.replaceWith(block(last));
  }
  if (low || above !== drawn) talk.scrollTop = talk.scrollHeight;
}

element.addEventListener('click', event => {
  const button = event.target.closest('button');
  if (!button) return;
  if (button.className === 'stop') return trigger('select', { stop: true });
  const said = button.closest('article').querySelector('.said').textContent;
  navigator.clipboard?.writeText(said).then(() => { button.textContent = 'copied'; setTimeout(() => { button.textContent = 'copy'; }, 1200); });
});
watch('value', draw);
draw();
talk.scrollTop = talk.scrollHeight;
