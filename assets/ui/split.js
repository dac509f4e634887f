// The split designer: a grid of projections by blocks of layers, painted with the words that are chosen as the brush.
const mount = element.querySelector('.mount');
const brush = {};
let painting = false;
let current = null;  // Tab reaches one cell, the arrow keys the others

const make = (name, attributes = {}, ...inside) => {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) key === 'text' ? made.textContent = value : made.setAttribute(key, value);
  made.append(...inside);
  return made;
};

function brushes(v) {
  const bar = make('div', { class: 'brush', role: 'toolbar', 'aria-label': 'Brush' });
  const first = Object.values(v.cells).find(words => words);  // the brush begins with what is there
  for (const [side, words] of Object.entries(v.words)) {
    if (!words.includes(brush[side])) brush[side] = first?.[side] || words[0];
    const group = make('div', {}, make('span', { text: side }));
    bar.append(group);
    for (const word of words) group.append(make('button', { class: `chip word-${word} ${!brush.off && brush[side] === word ? 'on' : ''}`,
      'data-side': side, 'data-word': word, 'aria-pressed': !brush.off && brush[side] === word, text: word }));
  }
  bar.append(make('button', { class: `chip word-off ${brush.off ? 'on' : ''}`, 'data-off': '1', 'aria-pressed': !!brush.off, text: 'not adapted', title: 'Leave the projection as it is in the base' }));
  return bar;
}

function cell(v, row, c) {
  const words = v.cells[`${row}|${c}`], sides = Object.keys(v.words);
  const label = words ? sides.map(side => `${side} ${words[side]}`).join(', ') : 'not adapted';
  const button = make('button', { class: `cell ${words ? '' : 'off'}`, 'data-cell': `${row}|${c}`, tabindex: current === `${row}|${c}` ? 0 : -1, 'aria-label': `${row}, layers ${v.cols[c]}: ${label}` });
  if (!words) button.append(make('i', { text: '—' }));
  else for (const side of sides) button.append(make('i', { class: `word-${words[side]}`, text: words[side] }));
  return make('td', {}, button);
}

function draw() {
  const v = props.value;
  if (!v || !v.rows) return mount.replaceChildren();
  if (!(current in v.cells)) current = `${v.rows[0]}|0`;
  const focused = element.contains(document.activeElement) ? document.activeElement.dataset.cell : null;
  const head = make('tr', {}, make('th', {}, make('button', { 'data-fill': '*|*', title: 'Paint everything', text: 'all' })),
    ...v.cols.map((name, c) => make('th', {}, make('button', { 'data-fill': `*|${c}`, title: 'Paint this block of layers', text: name }))));
  const body = v.rows.map(row => make('tr', {}, make('th', {}, make('button', { 'data-fill': `${row}|*`, title: 'Paint this projection', text: row.replace(/_proj$/, '') })),
    ...v.cols.map((_, c) => cell(v, row, c))));
  mount.replaceChildren(brushes(v), make('table', {}, make('thead', {}, head), make('tbody', {}, ...body)));
  if (focused) mount.querySelector(`[data-cell="${CSS.escape(focused)}"]`)?.focus();  // drawing replaced the button
}

function paint(pattern) {
  const split = pattern.lastIndexOf('|'), row = pattern.slice(0, split), col = pattern.slice(split + 1);
  const v = props.value, cells = { ...v.cells };
  const words = brush.off ? null : Object.fromEntries(Object.keys(v.words).map(side => [side, brush[side]]));
  for (const key of Object.keys(cells)) {
    const at = key.lastIndexOf('|');
    if ((row === '*' || row === key.slice(0, at)) && (col === '*' || col === key.slice(at + 1))) cells[key] = words;
  }
  if (JSON.stringify(cells) === JSON.stringify(v.cells)) return;
  props.value = { ...v, cells };  // a new object: a change inside the old one is not seen
  draw();
  trigger('input', { pattern });
}

element.addEventListener('pointerdown', event => {
  const button = event.target.closest('button');
  if (!button?.dataset.cell) return;
  painting = true;
  button.releasePointerCapture?.(event.pointerId);
  paint(button.dataset.cell);
});
element.addEventListener('pointerover', event => {
  const button = event.target.closest('button');
  if (painting && button?.dataset.cell) paint(button.dataset.cell);
});
window.addEventListener('pointerup', () => { painting = false; });
element.addEventListener('click', event => {
  const button = event.target.closest('button');
  if (!button) return;
  const { side, word, fill, cell: at, off } = button.dataset;
  if (off) { brush.off = true; draw(); }
  else if (side) { brush.off = false; brush[side] = word; draw(); }
  else if (fill) paint(fill);
  else if (at) paint(at);  // keyboard: Enter and Space arrive as clicks
});
element.addEventListener('focusin', event => {
  const at = event.target.dataset?.cell;
  if (!at || at === current) return;
  mount.querySelector(`[data-cell="${CSS.escape(current)}"]`)?.setAttribute('tabindex', '-1');
  event.target.setAttribute('tabindex', '0');
  current = at;
});
element.addEventListener('keydown', event => {
  const at = event.target.dataset?.cell, step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
  if (!at || !step) return;
  event.preventDefault();
  const v = props.value, split = at.lastIndexOf('|'), r = v.rows.indexOf(at.slice(0, split)) + step[0], c = Number(at.slice(split + 1)) + step[1];
  mount.querySelector(`[data-cell="${CSS.escape(`${v.rows[r]}|${c}`)}"]`)?.focus();
});
watch('value', draw);
draw();
