// Routing as small multiples in one SVG: layers bottom to top, experts left to right, one panel per task and projection.
const NS = 'http://www.w3.org/2000/svg', STEPS = 32;
const mount = element.querySelector('.mount');
const tip = document.createElement('div');
tip.className = 'tip';
element.appendChild(tip);
window.tesseraSaveButtons(element, () => mount.querySelector('svg'), () => props.value?.name || 'routing');
let cursor = null, picked = null;

const node = (name, attributes = {}, text = null) => {
  const made = document.createElementNS(NS, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== null) made.textContent = text;  // textContent: names never become markup
  return made;
};
const clip = (text, length) => text.length > length ? text.slice(0, length - 1) + '…' : text;
const shade = (v, x) => Math.max(0, Math.min(STEPS, Math.round((x - (v.low || 0)) / ((v.top - (v.low || 0)) || 1) * STEPS)));

// Where every panel stands. One projection: the tasks flow in lines; several: a row per task, a column per projection.
function plan(v) {
  const flow = v.cols.length === 1, columns = flow ? Math.min(v.rows.length, 6) : v.cols.length;
  const wide = Math.max(1, v.experts), deep = v.layers.length;
  const lines = flow ? Math.ceil(v.rows.length / columns) : v.rows.length;
  const left = flow ? 34 : 118, top = flow ? 8 : 30, gap = flow ? 26 : 12, head = flow ? 22 : 0;
  const cell = Math.max(4, Math.min(22, ((1080 - left) / columns - gap) / wide));
  const tall = Math.max(4, Math.min(cell, deep > 24 ? 9 : 16));
  const width = cell * wide, height = tall * deep;
  const place = (r, c) => {
    const at = flow ? [r % columns, Math.floor(r / columns)] : [c, r];
    return { x: left + at[0] * (width + gap), y: top + at[1] * (height + gap + head + (flow ? 12 : 6)) + head };
  };
  const panels = v.rows.flatMap((_, r) => v.cols.map((_, c) => ({ r, c, ...place(r, c) })));
  return { flow, cell, tall, width, height, panels, columns, lines,
    W: left + columns * (width + gap), H: top + lines * (height + gap + head + (flow ? 12 : 6)) + 48 };
}

function draw() {
  const v = props.value;
  if (!v || !v.rows?.length) { mount.replaceChildren(); return; }
  const p = plan(v), svg = node('svg', { viewBox: `0 0 ${p.W.toFixed(0)} ${p.H.toFixed(0)}`, role: 'img', tabindex: 0,
    'aria-label': `${v.figure}, layer by expert, for ${v.rows.join(', ')}. Arrow keys walk, Enter chooses.` });
  svg.style.maxWidth = `${Math.max(p.W * 1.5, 560)}px`;
  if (!p.flow) v.cols.forEach((name, c) => svg.append(node('text', { class: 'head', x: p.panels[c].x + p.width / 2, y: 18, 'text-anchor': 'middle' }, clip(name, 12))));
  for (const panel of p.panels) {
    if (p.flow) svg.append(node('text', { class: 'head', x: panel.x, y: panel.y - 8 }, clip(v.rows[panel.r], Math.max(10, Math.floor(p.width / 7)))));
    else if (panel.c === 0) {
      svg.append(node('text', { class: 'head', x: 84, y: panel.y + p.height / 2 + 4, 'text-anchor': 'end' }, clip(v.rows[panel.r], 13)));
    }
    v.values[panel.r][panel.c].forEach((line, l) => line.forEach((x, e) => {
      const box = { x: (panel.x + e * p.cell).toFixed(1), y: (panel.y + (v.layers.length - 1 - l) * p.tall).toFixed(1),
        width: (p.cell - 1).toFixed(1), height: (p.tall - 1).toFixed(1) };
      if (x === null) return svg.append(node('rect', { ...box, class: 'absent' }));
      const rect = node('rect', { ...box, 'data-at': `${panel.r},${panel.c},${l},${e}` });
      rect.style.fill = `var(--heat-${shade(v, x)})`;
      svg.append(rect);
    }));
    const last = v.layers.length - 1, every = v.layers.length > 16 ? 8 : 4;
    if (p.flow ? panel.x < 40 : panel.c === 0) v.layers.forEach((name, l) => {
      if (l % every === 0 || l === last) svg.append(node('text', { class: 'tick', x: panel.x - 5, y: panel.y + (last - l) * p.tall + p.tall / 2 + 3, 'text-anchor': 'end' }, name));
    });
    if (p.flow || panel.r === v.rows.length - 1) for (let e = 0; v.experts > 1 && e < v.experts; e++) {
      if (p.cell >= 11 || e % 2 === 0) svg.append(node('text', { class: 'tick', x: panel.x + (e + .5) * p.cell, y: panel.y + p.height + 10, 'text-anchor': 'middle' }, e + 1));
    }
  }
  legend(svg, v, p);
  mount.replaceChildren(svg);
  mark();
}

function legend(svg, v, p) {
  const y = p.H - 22, x = p.panels[0].x, wide = 4.2;
  for (let i = 0; i <= STEPS; i++) {
    const box = node('rect', { x: x + i * wide, y, width: wide + .4, height: 8 });
    box.style.fill = `var(--heat-${i})`;
    svg.append(box);
  }
  svg.append(node('text', { class: 'tick', x, y: y + 19 }, (v.low || 0).toString()),
    node('text', { class: 'tick', x: x + (STEPS + 1) * wide, y: y + 19, 'text-anchor': 'end' }, v.top.toFixed(2)),
    node('text', { class: 'unit', x: x + (STEPS + 1) * wide + 10, y: y + 8 }, `${v.figure}${v.caption ? ' · ' + v.caption : ''}`));
}

function mark() {
  mount.querySelectorAll('.picked, .cursor').forEach(n => n.classList.remove('picked', 'cursor'));
  if (picked) mount.querySelector(`[data-at="${picked}"]`)?.classList.add('picked');
  if (cursor) mount.querySelector(`[data-at="${cursor}"]`)?.classList.add('cursor');
}

function cell(key) {
  const v = props.value, [row, col, layer, expert] = key.split(',').map(Number);
  return { row, col, layer, expert, value: v.values[row][col][layer][expert] };
}

function say(key, x, y) {
  const v = props.value, at = cell(key), count = v.counts?.[at.row]?.[at.col];
  tip.textContent = `${v.rows[at.row]} · ${v.cols[at.col]} · layer ${v.layers[at.layer]}` +
    (v.experts > 1 ? ` · expert ${at.expert + 1}` : '') + ` · ${v.figure} ${at.value.toFixed(3)}` +
    (count ? ` · ${count.toLocaleString('en')} ${v.unit}s` : '');
  tip.style.display = 'block';
  const box = element.getBoundingClientRect();
  tip.style.left = Math.max(0, Math.min(x - box.left + 12, box.width - tip.offsetWidth - 8)) + 'px';
  tip.style.top = y - box.top + 16 + 'px';
}

function choose(key) {
  picked = key;
  mark();
  trigger('select', cell(key));
}

element.addEventListener('mousemove', event => {
  const key = event.target.dataset?.at;
  if (key) say(key, event.clientX, event.clientY); else tip.style.display = 'none';
});
element.addEventListener('mouseleave', () => { tip.style.display = 'none'; });
element.addEventListener('click', event => { if (event.target.dataset?.at) choose(event.target.dataset.at); });
element.addEventListener('keydown', event => {
  const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [1, 0], ArrowDown: [-1, 0] }[event.key];
  if (event.key === 'Enter' && cursor) return choose(cursor);
  if (!step || !props.value) return;
  event.preventDefault();
  const [r, c, l, e] = (cursor || picked || '0,0,0,0').split(',').map(Number), v = props.value;
  let next = [r, c, l + step[0], e + step[1]];
  if (next[3] >= v.experts) next = c + 1 < v.cols.length ? [r, c + 1, l, 0] : [(r + 1) % v.rows.length, 0, l, 0];
  if (next[3] < 0) next = c > 0 ? [r, c - 1, l, v.experts - 1] : [(r + v.rows.length - 1) % v.rows.length, v.cols.length - 1, l, v.experts - 1];
  if (!mount.querySelector(`[data-at="${next}"]`)) return;
  cursor = next.join(',');
  mark();
  const box = mount.querySelector(`[data-at="${cursor}"]`).getBoundingClientRect();
  say(cursor, box.right, box.bottom);
});
watch('value', () => { cursor = null; draw(); });
draw();
