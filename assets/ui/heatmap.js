// Routing as small multiples in one SVG: layers bottom to top, experts left to right, one panel per task and projection.
// Drawn at the width of the page, so letters keep their size; a change of values alone only changes colours.
const NS = 'http://www.w3.org/2000/svg', STEPS = 32, PAGE = 24, SMOOTH = 2500;
const mount = element.querySelector('.mount');
const tip = Object.assign(document.createElement('div'), { className: 'tip' });
tip.setAttribute('role', 'status');
const numbers = document.createElement('details');
numbers.className = 'numbers';
numbers.append(Object.assign(document.createElement('summary'), { textContent: 'The numbers as a table' }), document.createElement('div'));
element.append(numbers, tip);
window.tesseraSaveButtons(element, () => mount.querySelector('svg'), () => props.value?.name || 'routing');
let cursor = null, picked = null, shape = '', cells = new Map(), ghosts = [], needle = null, plan = null, page = 0;

const node = (name, attributes = {}, text = null) => {
  const made = document.createElementNS(NS, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== null) made.textContent = text;  // textContent: names never become markup
  return made;
};
// As core/sheets.py: a spreadsheet computes nothing that is pasted; signed numbers stay.
const inert = x => typeof x === 'string' && /^ *['=+\-@\t\r\n＝＋－＠]/.test(x) && !(x.trim() && isFinite(x)) ? `'${x}` : x;
const clip = (text, room, size = 6.6) => text.length * size > room ? text.slice(0, Math.max(3, Math.floor(room / size) - 1)) + '…' : text;
const clamp = (x, low, high) => Math.max(low, Math.min(high, x));
const signed = v => v.mid !== undefined && v.mid !== null;
const low = v => v.log ? v.mid / v.top : signed(v) ? v.mid - v.top : v.low || 0;
const high = v => v.log ? v.mid * v.top : signed(v) ? v.mid + v.top : v.top;
const bend = (v, x) => v.log ? Math.log(Math.max(x, 1e-9)) : x;  // as far above the middle as below it, as a factor
const share = (v, x) => clamp((bend(v, x) - bend(v, low(v))) / ((bend(v, high(v)) - bend(v, low(v))) || 1), 0, 1);
const colour = (v, i) => `var(--${signed(v) ? 'diverge' : 'heat'}-${i})`;
const across = v => v.across?.length ? v.across : Array.from({ length: v.experts }, (_, e) => String(e));
const show = (v, x) => x === false || x === null ? '–' : (signed(v) && v.mid === 0 && x > 0 ? '+' : '') + x.toFixed(v.digits ?? 3);
const counted = (v, r, c) => v.counts?.[r]?.[c] ? `${Math.round(v.counts[r][c]).toLocaleString('en')} ${v.unit}s` : '';

// Where every panel stands. One projection: the tasks flow in lines; several: a row per task, a column per projection.
function layout(v) {
  const W = Math.max(mount.clientWidth || 1000, 320), flow = v.cols.length === 1, wide = across(v).length, deep = v.layers.length;
  const left = flow ? Math.max(46, (v.acrossName || 'expert').length * 6 + 12) : 150, gap = flow ? 22 : 10, top = v.compact ? 4 : flow ? 40 : 24, foot = 18;
  const fit = Math.max(1, Math.floor((W - left) / (wide * 10 + gap)));
  const lines = flow ? Math.ceil(v.rows.length / Math.min(fit, v.rows.length)) : v.rows.length;
  const columns = flow ? Math.ceil(v.rows.length / lines) : v.cols.length;
  const cell = clamp(((W - left) / columns - gap) / wide, 3, v.compact ? 16 : wide < 3 || v.rows.length * v.cols.length === 1 ? 44 : 34);
  const tall = clamp(Math.min(cell * 1.1, (flow ? 430 : 190) / deep), 4, v.compact ? 10 : v.rows.length * v.cols.length === 1 ? 30 : 22);
  const width = cell * wide, height = tall * deep, step = height + (flow ? top + foot : 12);
  const panels = v.rows.flatMap((_, r) => v.cols.map((_, c) => {
    const [i, j] = flow ? [r % columns, Math.floor(r / columns)] : [c, r];
    return { r, c, i, j, x: left + i * (width + gap), y: top + j * step };
  }));
  const H = top + lines * step - (flow ? top : 12 - foot) + (v.compact ? 0 : W - left < 440 ? 84 : 52);
  return { W, H, flow, cell, tall, width, height, panels, lines, columns, left };
}

function frame(v) {
  const p = plan = layout(v), names = across(v), last = v.layers.length - 1;
  const svg = node('svg', { viewBox: `0 0 ${p.W.toFixed(0)} ${p.H.toFixed(0)}`, role: 'img', tabindex: 0,
    'aria-label': `${v.figure}: layer by ${v.acrossName || 'expert'} for ${v.rows.join(', ')}. Arrow keys walk, Enter chooses; the numbers stand in the table below.` });
  svg.style.maxWidth = `${p.W}px`;
  cells = new Map();
  needle = null;
  if (v.rows.length * v.cols.length * names.length * v.layers.length < SMOOTH) svg.classList.add('smooth');
  for (const panel of p.panels) {
    titles(svg, v, p, panel);
    v.values[panel.r][panel.c].forEach((line, l) => line.forEach((x, e) => {
      const x0 = panel.x + e * p.cell, y0 = panel.y + (last - l) * p.tall;
      if (x === null) return svg.append(node('circle', { class: 'absent', cx: (x0 + p.cell / 2 - .5).toFixed(1), cy: (y0 + p.tall / 2 - .5).toFixed(1), r: .8 }));
      const rect = node('rect', { x: x0.toFixed(1), y: y0.toFixed(1), width: Math.max(1, p.cell - 1).toFixed(1), height: Math.max(1, p.tall - 1).toFixed(1), 'data-at': `${panel.r},${panel.c},${l},${e}` });
      if (p.cell > 12 && p.tall > 12) rect.setAttribute('rx', 1.5);
      svg.append(rect);
      rect.place = [panel.r, panel.c, l, e];
      cells.set(rect.dataset.at, rect);
    }));
  }
  if (!v.compact) legend(svg, v, p);
  ghosts = p.panels.map(panel => Object.assign(node('rect', { class: 'ghost', width: p.cell + 1, height: p.tall + 1, visibility: 'hidden' }), { panel }));
  svg.append(...ghosts);
  mount.replaceChildren(svg);
}

function titles(svg, v, p, panel) {
  const name = v.rows[panel.r], count = counted(v, panel.r, panel.c), last = v.layers.length - 1;
  const named = (text, room, attributes) => {
    const label = node('text', { class: 'head', ...attributes }, clip(text, room));
    label.append(node('title', {}, text));
    svg.append(label);
  };
  if (p.flow && !v.compact) {
    named(name, p.width + 14, { x: panel.x, y: panel.y - (count ? 21 : 9) });
    if (count) svg.append(node('text', { class: 'tick', x: panel.x, y: panel.y - 8 }, clip(count, p.width + 18, 4.8)));
  } else if (!p.flow) {
    if (panel.c === 0) named(name, p.left - 44, { x: p.left - 32, y: panel.y + p.height / 2 + (count ? -2 : 4), 'text-anchor': 'end' });
    if (panel.c === 0 && count) svg.append(node('text', { class: 'tick', x: p.left - 32, y: panel.y + p.height / 2 + 12, 'text-anchor': 'end' }, count));
    const head = v.cols[panel.c].length * 6.6 > p.width + 8 && v.heads?.[panel.c] || v.cols[panel.c];  // of parts, the part
    if (panel.r === 0) named(head, p.width + 8, { x: panel.x + p.width / 2, y: panel.y - 9, 'text-anchor': 'middle' });
  }
  const every = Math.max(1, Math.ceil(14 / p.tall)), step = [1, 2, 4, 8, 16].find(s => s >= every) || 16;
  if (panel.i === 0) v.layers.forEach((layer, l) => {
    if (l % step === 0 && (last - l >= step || l === last) || l === last) svg.append(node('text', { class: 'tick', x: panel.x - 6, y: panel.y + (last - l) * p.tall + p.tall / 2 + 3, 'text-anchor': 'end' }, layer));
  });
  const lowest = p.flow || panel.r === v.rows.length - 1;
  if (panel.i === 0 && panel.j === 0 && !v.compact) svg.append(node('text', { class: 'tick axis', x: panel.x - 6, y: panel.y - (p.flow ? 8 : 9), 'text-anchor': 'end' }, 'layer'));
  if (!lowest) return;
  const names = across(v), room = Math.max(...names.map(n => n.length)) * 5.4 + 3, skip = names.length < 2 ? 0 : Math.ceil(room / p.cell);
  if (skip) names.forEach((n, e) => { if (e % skip === 0) svg.append(node('text', { class: 'tick', x: panel.x + (e + .5) * p.cell, y: panel.y + p.height + 11, 'text-anchor': 'middle' }, n)); });
  if (skip && panel.i === 0 && !v.compact) svg.append(node('text', { class: 'tick axis', x: panel.x - 6, y: panel.y + p.height + 11, 'text-anchor': 'end' }, v.acrossName || 'expert'));
}

function legend(svg, v, p) {
  const under = p.W - p.left < 440, y = p.H - (under ? 56 : 24), x = p.left, wide = 5, length = (STEPS + 1) * wide, at = value => x + share(v, value) * length;
  for (let i = 0; i <= STEPS; i++) {
    const box = node('rect', { x: x + i * wide, y, width: wide + .4, height: 8 });
    box.style.fill = colour(v, i);
    svg.append(box);
  }
  const even = signed(v) ? v.mid : v.even, marks = [[low(v), 'start'], [high(v), 'end']];
  if (even !== undefined && even !== null && share(v, even) > .14 && share(v, even) < .8) marks.push([even, 'middle']);
  for (const [value, anchor] of marks) {
    const text = value === even && v.evenName && anchor === 'middle' ? `${v.evenName} ${+value.toFixed(3)}` : +value.toFixed(v.log ? 2 : 3);
    svg.append(node('text', { class: 'tick', x: at(value), y: y + 19, 'text-anchor': anchor }, text));
    if (anchor === 'middle') svg.append(node('line', { class: 'mark', x1: at(value), x2: at(value), y1: y - 2, y2: y + 10 }));
  }
  needle = node('path', { class: 'needle', d: 'M-4 -5L4 -5L0 0Z', visibility: 'hidden' });
  const at0 = under ? 4 : x + length + 14, room = p.W - at0, line = under ? y + 36 : y + 4;  // beside the scale, or below it
  svg.append(needle, node('text', { class: 'unit', x: at0, y: line }, clip(v.figure, room, 6.2)));
  if (v.caption) svg.append(node('text', { class: 'tick', x: at0, y: line + 14 }, clip(v.caption, room, 5)));
}

function draw() {
  const v = props.value;
  numbers.hidden = !v?.rows?.length || Boolean(v.compact);
  if (!v?.rows?.length) { mount.replaceChildren(); shape = ''; return; }
  const holes = v.values.flat(3).map(x => x === null ? 'n' : x === false ? 'f' : '').join();
  const now = JSON.stringify([v.rows, v.cols, v.layers, across(v), v.counts, v.top, v.low, v.mid, v.log, v.even, v.figure, v.caption, v.compact, mount.clientWidth, holes]);
  if (now !== shape) { frame(v); shape = now; }
  for (const rect of cells.values()) {
    const [r, c, l, e] = rect.place, x = v.values[r][c][l][e], fill = x === false ? '' : colour(v, Math.round(share(v, x) * STEPS));
    if (rect.fill === fill) continue;  // thousands of cells: touch those that changed
    rect.classList.toggle('uncounted', x === false);
    rect.style.fill = rect.fill = fill;
  }
  mark();
  if (numbers.open) table();
}

function mark() {
  mount.querySelectorAll('.picked, .cursor').forEach(n => n.classList.remove('picked', 'cursor'));
  if (picked) cells.get(picked)?.classList.add('picked');
  if (cursor) cells.get(cursor)?.classList.add('cursor');
}

function cell(key) {
  const v = props.value, [row, col, layer, expert] = key.split(',').map(Number);
  return { row, col, layer, expert, value: v.values[row]?.[col]?.[layer]?.[expert] ?? null };
}

function say(key, x, y) {
  const v = props.value, at = cell(key), count = counted(v, at.row, at.col), names = across(v);
  tip.textContent = [v.rows[at.row], v.cols[at.col], `layer ${v.layers[at.layer]}`, names.length > 1 ? `${v.acrossName || 'expert'} ${names[at.expert]}` : '',
    at.value === false ? 'nothing counted' : `${(v.short || v.figure).toLowerCase()} ${show(v, at.value)}`, count].filter(Boolean).join(' · ');
  tip.style.display = 'block';
  const box = element.getBoundingClientRect();
  tip.style.left = clamp(x - box.left + 12, 0, Math.max(0, box.width - tip.offsetWidth - 8)) + 'px';
  tip.style.top = y - box.top + 16 + 'px';
  for (const ghost of ghosts) {
    ghost.setAttribute('x', ghost.panel.x + at.expert * plan.cell - 1);
    ghost.setAttribute('y', ghost.panel.y + (v.layers.length - 1 - at.layer) * plan.tall - 1);
    ghost.setAttribute('visibility', cells.has(`${ghost.panel.r},${ghost.panel.c},${at.layer},${at.expert}`) ? 'visible' : 'hidden');
  }
  if (!needle || at.value === false) return;
  needle.setAttribute('transform', `translate(${plan.left + share(v, at.value) * (STEPS + 1) * 5} ${plan.H - (plan.W - plan.left < 440 ? 57 : 25)})`);
  needle.setAttribute('visibility', 'visible');
}

function hush() {
  tip.style.display = 'none';
  for (const n of [...ghosts, needle]) n?.setAttribute('visibility', 'hidden');
}

function choose(key) {
  picked = key;
  mark();
  trigger('select', cell(key));
}

// The same numbers for readers of tables: a line for each task, projection and layer; the whole can be copied.
const many = v => v.cols.length > 1 || Boolean(v.cols[0]);
const names3 = v => [v.rowName || 'task', ...(many(v) ? ['projection'] : []), 'layer'];
const head = v => [...names3(v), ...across(v).map(n => across(v).length < 2 ? v.short || v.figure : v.acrossName ? n : `expert ${n}`), ...(v.counts ? [`${v.unit || 'decision'}s`] : [])];
const lines = v => v.rows.flatMap((row, r) => v.cols.flatMap((col, c) => v.values[r][c].map((line, l) => ({
  names: [row, ...(many(v) ? [col] : []), v.layers[l]], shown: across(v).map((_, e) => show(v, line[e] ?? null)), count: v.counts?.[r]?.[c] ?? '' }))))
  .filter(line => line.shown.some(x => x !== '–')).map(line => [...line.names, ...line.shown, ...(v.counts ? [line.count] : [])]);

function table() {
  const v = props.value, all = lines(v), pages = Math.max(1, Math.ceil(all.length / PAGE));
  page = clamp(page, 0, pages - 1);
  const grid = document.createElement('table'), bar = document.createElement('p');
  grid.className = 'grid';
  const row = (values, tag) => { const tr = document.createElement('tr'); values.forEach((x, i) => tr.append(Object.assign(document.createElement(tag), { textContent: x, className: i >= names3(v).length - 1 ? 'num' : '' }))); return tr; };
  grid.createTHead().append(row(head(v), 'th'));
  grid.createTBody().append(...all.slice(page * PAGE, (page + 1) * PAGE).map(line => row(line, 'td')));
  const button = (label, act, off = false) => { const made = Object.assign(document.createElement('button'), { textContent: label, disabled: off }); made.addEventListener('click', act); bar.append(made); };
  if (pages > 1) button('‹ Previous', () => { page -= 1; table(); }, page === 0);
  if (pages > 1) button('Next ›', () => { page += 1; table(); }, page === pages - 1);
  button('Copy all', event => { navigator.clipboard?.writeText([head(v), ...all].map(line => line.map(inert).join('\t')).join('\n')); event.target.textContent = 'Copied'; });
  bar.append(Object.assign(document.createElement('small'), { textContent: `${v.figure}${v.caption ? ' · ' + v.caption : ''} · lines ${page * PAGE + 1}–${Math.min(all.length, (page + 1) * PAGE)} of ${all.length}` }));
  const scroll = Object.assign(document.createElement('div'), { className: 'scroll' });
  scroll.append(grid);
  numbers.lastElementChild.replaceChildren(bar, scroll);
}

element.addEventListener('mousemove', event => {
  const key = event.target.dataset?.at;
  if (key) say(key, event.clientX, event.clientY); else hush();
});
element.addEventListener('mouseleave', hush);
element.addEventListener('focusout', hush);
element.addEventListener('click', event => { if (event.target.dataset?.at) choose(event.target.dataset.at); });
element.addEventListener('keydown', event => {
  if (event.target.tagName !== 'svg' || !props.value) return;
  const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [1, 0], ArrowDown: [-1, 0] }[event.key];
  if (event.key === 'Escape') { cursor = null; mark(); return hush(); }
  if (event.key === 'Enter' && cursor) return choose(cursor);
  if (!step) return;
  event.preventDefault();
  const v = props.value, order = plan.panels.map(panel => `${panel.r},${panel.c}`), wide = across(v).length;
  let [r, c, l, e] = (cursor || picked || '0,0,0,-1').split(',').map(Number);
  const there = () => cells.has(`${r},${c},${l},${e}`);
  l += step[0];
  if (l < 0 || l >= v.layers.length) return;
  for (let tries = order.length * wide; step[1] && tries > 0; tries--) {  // over experts that a layer lacks, into the next panel
    e += step[1];
    if (e < 0 || e >= wide) [r, c] = order[(order.indexOf(`${r},${c}`) + step[1] + order.length) % order.length].split(',').map(Number);
    e = (e + wide) % wide;
    if (there()) break;
  }
  while (e > 0 && !there()) e -= 1;
  if (!there()) return;
  cursor = `${r},${c},${l},${e}`;
  mark();
  const box = cells.get(cursor)?.getBoundingClientRect();
  if (box) say(cursor, box.right, box.bottom);
});
numbers.addEventListener('toggle', () => { if (numbers.open && props.value) table(); });
let resting = 0;
new ResizeObserver(() => { cancelAnimationFrame(resting); resting = requestAnimationFrame(draw); }).observe(mount);
watch('value', () => { picked = props.value?.picked || null; draw(); });
picked = props.value?.picked || null;
draw();
