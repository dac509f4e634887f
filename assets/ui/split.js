// The split designer: a grid of projections by blocks of layers, painted with the words that are chosen as the brush.
const mount = element.querySelector('.mount');
const brush = {};
const PICK = 'Show the settings of a single cell: click it, then change experts, rank or options above';
let painting = false;
let current = null;  // Tab reaches one cell, the arrow keys the others

const make = (name, attributes = {}, ...inside) => {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) key === 'text' ? made.textContent = value : made.setAttribute(key, value);
  made.append(...inside);
  return made;
};

const host = () => element.closest('.block') || element;
const chip = (text, on, attributes) => make('button', { ...attributes, class: `chip ${attributes.class || ''} ${on ? 'on' : ''}`, 'aria-pressed': !!on, text });

function brushes(v) {
  const bar = make('div', { class: 'brush', role: 'toolbar', 'aria-label': 'Brush' });
  const first = Object.values(v.cells).find(words => words && !words.frozen);  // the brush begins with what is there
  const idle = brush.off || brush.pick;
  for (const [side, words] of Object.entries(v.words)) {
    if (!words.includes(brush[side])) brush[side] = first?.[side] || words[0];
    const group = make('div', {}, make('span', { text: side }));
    bar.append(group);
    for (const word of words) group.append(chip(word.replace(/_/g, ' '), !idle && brush[side] === word,
      { class: `word-${word}`, 'data-side': side, 'data-word': word, title: v.about?.[side]?.[word] || '' }));
  }
  bar.append(make('div', {}, chip('frozen', brush.off, { class: 'word-off', 'data-off': '1', title: 'Leave the projection as it is in the base' }),
    chip('settings of one cell', brush.pick, { class: 'word-pick', 'data-pick': '1', title: PICK })));
  return bar;
}

const short = own => Object.entries(own).map(([name, value]) => `${name.split('.').pop().replace(/_/g, ' ')} ${value === null ? 'all' : value}`).join(', ');

function cell(v, row, c) {
  const key = `${row}|${c}`, words = v.cells[key], sides = Object.keys(v.words), wrong = host().cellMarks?.[key];
  const own = words?.own ? short(words.own) : '';
  const label = !words ? 'not adapted' : words.frozen ? 'frozen' : sides.map(side => `${side} ${words[side]}`).join(', ') + (own ? `, ${own}` : '');
  const button = make('button', { class: `cell ${words && !words.frozen ? '' : 'off'} ${wrong ? 'wrong' : ''} ${v.picked === key ? 'picked' : ''}`, 'data-cell': key,
    tabindex: current === key ? 0 : -1, title: wrong || label, 'aria-label': `${row}, layers ${v.cols[c]}: ${label}${wrong ? `. ${wrong}` : ''}` });
  if (!words) button.append(make('i', { text: '—' }));
  else if (words.frozen) button.append(make('i', { class: 'word-off', text: 'frozen' }));
  else for (const side of sides) button.append(make('i', { class: `word-${words[side]}`, text: words[side].replace(/_/g, ' ') }));
  if (own) button.append(make('em', { text: own }));
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

// Experts, rank and alpha of a cell stay when it is painted; options go with their word.
function repainted(before, v) {
  if (brush.off) return { frozen: true };
  const words = Object.fromEntries(Object.keys(v.words).map(side => [side, brush[side]]));
  const own = Object.fromEntries(Object.entries(before?.own || {}).filter(([name]) => !name.includes('.') || before[name.split('.')[0]] === words[name.split('.')[0]]));
  return Object.keys(own).length ? { ...words, own } : words;
}

function pick(key) {
  const v = props.value, picked = v.cells[key] && !v.cells[key].frozen && v.picked !== key ? key : null;
  props.value = { ...v, picked };
  draw();
  trigger('select', { cell: picked });
}

function paint(pattern) {
  const split = pattern.lastIndexOf('|'), row = pattern.slice(0, split), col = pattern.slice(split + 1);
  const v = props.value, cells = { ...v.cells };
  for (const key of Object.keys(cells)) {
    const at = key.lastIndexOf('|');
    if ((row === '*' || row === key.slice(0, at)) && (col === '*' || col === key.slice(at + 1))) cells[key] = repainted(cells[key], v);
  }
  if (JSON.stringify(cells) === JSON.stringify(v.cells)) return;
  props.value = { ...v, cells, picked: null };  // a new object: a change inside the old one is not seen
  draw();
  trigger('input', { pattern });
}

element.addEventListener('pointerdown', event => {
  const button = event.target.closest('button');
  if (!button?.dataset.cell || brush.pick) return;
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
  const { side, word, fill, cell: at, off, pick: picks } = button.dataset, was = brush.pick;
  if (off || side || picks) {
    Object.assign(brush, { off: !!off, pick: !!picks && !was });
    if (side) brush[side] = word;
    if (was && props.value.picked) pick(props.value.picked);  // the form turns back to the whole split
    else draw();
  } else if (brush.pick && at) pick(at);
  else if (fill && !brush.pick) paint(fill);
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
host().addEventListener('marks', draw);
watch('value', draw);
draw();
