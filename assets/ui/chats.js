// The conversations that are kept: each line is a link that opens one.
const mount = element.querySelector('.mount');
const node = (tag, className = '', text = '') => Object.assign(document.createElement(tag), { className, textContent: text });

function line(row) {
  const link = Object.assign(node('a', row.on ? 'chatline on' : 'chatline'), { href: row.href });
  if (row.on) link.setAttribute('aria-current', 'page');
  link.append(node('span', 'title', row.title), node('span', 'about num', row.about));
  return link;
}

function pager(v) {
  const bar = node('div', 'pager num'), move = node('span');
  bar.append(node('span', '', v.total));
  for (const [text, page, title] of [['‹', v.page - 1, 'Newer conversations'], ['›', v.page + 1, 'Older conversations']]) {
    const button = Object.assign(node('button', '', text), { title, disabled: page < 1 || page > v.pages });
    button.dataset.page = page;
    button.setAttribute('aria-label', title);
    move.append(button);
  }
  bar.append(move);
  return bar;
}

function draw() {
  const v = props.value;
  if (!v?.rows) return;
  const held = document.activeElement?.dataset?.page && mount.contains(document.activeElement) ? document.activeElement.title : '';
  const lines = node('div', 'lines');
  lines.append(...(v.rows.length ? v.rows.map(line) : [node('p', 'none', v.empty)]));
  const top = mount.querySelector('.lines')?.scrollTop || 0;
  mount.replaceChildren(lines, ...(v.pages > 1 ? [pager(v)] : []));
  lines.scrollTop = held ? 0 : top;
  if (held) mount.querySelector(`button[title="${held}"]`)?.focus({ preventScroll: true });
}
element.addEventListener('click', event => {
  const button = event.target.closest('button');
  if (button) trigger('select', { page: Number(button.dataset.page) });
});
watch('value', draw);
draw();
