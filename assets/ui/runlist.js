// The list of runs: drawn from data as text; the focus stays on the same run when the list is drawn again.
const mount = element.querySelector('.mount');
const node = (tag, className = '', text = '') => Object.assign(document.createElement(tag), { className, textContent: text });

function line(run) {
  const button = node('button', run.on ? 'runline on' : 'runline');
  button.dataset.run = run.id;
  button.setAttribute('aria-current', run.on);
  const top = node('span', 'top');
  top.append(node('b', 'num', run.id), node('span', 'name', run.name), node('em', `state ${run.state}`, run.state));
  const low = node('span', 'low num');
  low.append(node('span', 'about', run.about));
  if (run.share !== null) {
    const track = node('i', 'track'), fill = node('i');
    fill.style.width = `${run.share * 100}%`;
    track.append(fill);
    low.append(track);
  }
  if (run.badge) low.append(node('em', 'badge', run.badge));
  run.tags.forEach(tag => low.append(node('span', 'tag', tag)));
  low.append(node('span', 'when', run.when));
  button.append(top, low);
  return button;
}

function pager(v) {
  const bar = node('div', 'pager num');
  bar.append(node('span', '', v.total));
  const move = node('span');
  for (const [text, page, title] of [['‹', v.page - 1, 'Newer runs'], ['›', v.page + 1, 'Older runs']]) {
    const button = node('button', '', text);
    button.dataset.page = page;
    button.title = title;
    button.setAttribute('aria-label', title);
    button.disabled = page < 1 || page > v.pages;
    if (text === '›') move.append(node('span', '', `page ${v.page} of ${v.pages}`));
    move.append(button);
  }
  bar.append(move);
  return bar;
}

function draw() {
  const v = props.value;
  if (!v?.groups) return;
  const focus = document.activeElement, within = mount.contains(focus) ? { ...focus.dataset } : null;
  const parts = [node('p', 'queue num', v.queue)];
  for (const group of v.groups) {
    if (group.title) {
      const title = node('p', 'setting', group.title);
      if (group.compare) title.append(' ', Object.assign(node('a', '', 'compare'), { href: group.compare }));
      parts.push(title);
    }
    parts.push(...group.runs.map(line));
  }
  if (!v.groups.some(group => group.runs.length)) parts.push(node('p', 'none', v.empty));
  mount.replaceChildren(...parts, pager(v));
  const key = within?.run ? `[data-run="${CSS.escape(within.run)}"]` : within?.page ? `[data-page="${CSS.escape(within.page)}"]` : null;
  if (key) mount.querySelector(key)?.focus({ preventScroll: true });
}

element.addEventListener('click', event => {
  const button = event.target.closest('button');
  if (button?.dataset.run) trigger('select', { run: button.dataset.run });
  else if (button?.dataset.page) trigger('select', { page: Number(button.dataset.page) });
});
element.addEventListener('keydown', event => {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key], all = [...mount.querySelectorAll('.runline')];
  const at = all.indexOf(document.activeElement);
  if (!step || at < 0) return;
  event.preventDefault();
  all[Math.max(0, Math.min(all.length - 1, at + step))].focus();
});
watch('value', draw);
draw();
