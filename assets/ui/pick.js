// Runs to choose from, or to open: chosen ones as chips in their order, a search, pages. Data are written as text.
const mount = element.querySelector('.mount');
const node = (tag, className = '', text = '') => Object.assign(document.createElement(tag), { className, textContent: text });
const chips = node('div', 'chosen'), list = node('div', 'picklines'), bar = node('div', 'pager num');
const search = Object.assign(node('input'), { type: 'search', placeholder: 'Search: id, name, method, notes', ariaLabel: 'Search the runs' });
mount.replaceChildren(chips, search, list, bar);
let timer = null, shown = '';

function chip(run, place) {
  const made = node('button', 'chip on');
  made.dataset.run = run.id;
  made.title = `${run.name}: take it out`;
  made.setAttribute('aria-label', `Take out ${run.id}, ${run.name}`);
  made.append(node('small', 'num', `${place + 1}`), node('b', 'num', run.id), node('span', '', run.name), node('i', '', '×'));
  return made;
}

function line(run) {
  const open = Boolean(run.href), made = node(open ? 'a' : 'button', `pickline${run.on ? ' on' : ''}`);
  if (open) made.href = run.href; else { made.dataset.run = run.id; made.setAttribute('aria-pressed', run.on); }
  if (open && run.on) made.setAttribute('aria-current', 'page');
  made.dataset.id = run.id;
  made.title = run.name;
  if (run.reason) made.disabled = true;
  const top = node('span', 'top'), low = node('span', 'low num');
  top.append(node('b', 'num', run.id), node('span', 'name', run.name));
  if (run.badge) top.append(node('em', 'badge', run.badge));
  if (run.state) top.append(node('em', `state ${run.state}`, run.state));
  low.append(node('span', 'about', run.about));
  if (run.share !== null && run.share !== undefined) {
    const track = node('i', 'track'), fill = node('i');
    fill.style.width = `${run.share * 100}%`;
    track.append(fill);
    low.append(track);
  }
  low.append(node('span', 'when', run.when));
  made.append(...(open ? [] : [node('span', 'box', run.on ? '✓' : '')]), top, low);
  if (run.reason) made.append(node('span', 'reason', run.reason));
  return made;
}

function pager(v) {
  for (const [text, page, title, off] of [['‹', v.page - 1, 'Newer runs', v.page <= 1], ['›', v.page + 1, 'Older runs', !v.more]]) {
    const button = Object.assign(node('button', '', text), { title, ariaLabel: title, disabled: off });
    button.dataset.page = page;
    if (text === '›') bar.append(node('span', '', `page ${v.page}`));
    bar.append(button);
  }
}

function draw() {
  const v = props.value;
  const now = JSON.stringify(v);
  if (!v?.runs || now === shown) return;
  shown = now;
  const focus = mount.contains(document.activeElement) ? { ...document.activeElement.dataset } : null;
  search.hidden = v.search === undefined;
  if (document.activeElement !== search && v.search !== undefined) search.value = v.search;
  chips.replaceChildren(...(v.chosen || []).map(chip));
  chips.hidden = !v.chosen?.length;
  list.replaceChildren(...v.runs.map(line));
  if (!v.runs.length) list.append(node('p', 'none', v.empty));
  bar.replaceChildren();
  bar.hidden = v.page <= 1 && !v.more;
  if (!bar.hidden) pager(v);
  const key = focus?.id || focus?.run ? `.picklines [data-id="${CSS.escape(focus.id || focus.run)}"]` : focus?.page ? `[data-page="${CSS.escape(focus.page)}"]` : null;
  if (key) mount.querySelector(key)?.focus({ preventScroll: true });
}

element.addEventListener('click', event => {
  const button = event.target.closest('button');
  if (button?.dataset.run) trigger('select', { run: button.dataset.run });
  else if (button?.dataset.page) trigger('select', { page: Number(button.dataset.page) });
});
search.addEventListener('input', event => {
  event.stopPropagation();
  clearTimeout(timer);
  timer = setTimeout(() => trigger('select', { search: search.value }), 300);
});
element.addEventListener('keydown', event => {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key], all = [...list.querySelectorAll('.pickline:not(:disabled)')];
  const at = all.indexOf(document.activeElement);
  if (!step || (at < 0 && document.activeElement !== search)) return;
  event.preventDefault();
  all[Math.max(0, Math.min(all.length - 1, at + step))]?.focus();
});
watch('value', draw);
draw();
