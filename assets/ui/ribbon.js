// The route of a whole text: layers bottom to top, tokens left to right, each cell in the colour of its strongest expert.
const NS = 'http://www.w3.org/2000/svg', COLOURS = 8;
const mount = element.querySelector('.mount');
const tip = Object.assign(document.createElement('div'), { className: 'tip' });
tip.setAttribute('role', 'status');
element.append(tip);
window.tesseraSaveButtons(element, () => mount.querySelector('svg'), () => props.value?.name || 'route');
let cells = new Map(), cursor = null;

const node = (name, attributes = {}, text = null) => {
  const made = document.createElementNS(NS, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== null) made.textContent = text;  // textContent: model text never becomes markup
  return made;
};
const seen = text => text.replace(/\n/g, '⏎').replace(/\t/g, '⇥').trim() || (text ? '·' : '∅');
const clip = text => text.length > 11 ? text.slice(0, 10) + '…' : text;

function draw() {
  const v = props.value;
  if (!v?.tokens?.length) { mount.replaceChildren(); return; }
  const W = Math.max(mount.clientWidth || 1000, 320), left = 46, n = v.tokens.length, deep = v.layers.length;
  const cell = Math.max(7, Math.min(40, (W - left - 24) / n)), tall = Math.max(7, Math.min(18, 300 / deep)), top = 16, foot = cell >= 9 ? 66 : 18, key = 30;
  const width = Math.max(left + cell * n + 24, Math.min(W, 560)), H = top + deep * tall + foot + key;
  const svg = node('svg', { viewBox: `0 0 ${width.toFixed(0)} ${H.toFixed(0)}`, role: 'img', tabindex: 0,
    'aria-label': `Strongest expert of every token in every layer, ${v.note || ''}. Arrow keys walk, Enter chooses layer and token.` });
  svg.style.width = `${width}px`;
  cells = new Map();
  v.layers.forEach((layer, l) => {
    const y = top + (deep - 1 - l) * tall;
    if (l === v.layer) svg.append(node('rect', { class: 'row', x: left - 3, y: y - 1.5, width: cell * n + 5, height: tall + 2, rx: 2 }));
    if (tall > 10 || l % 4 === 0 || l === deep - 1) svg.append(node('text', { class: l === v.layer ? 'tick on' : 'tick', x: left - 8, y: y + tall / 2 + 4, 'text-anchor': 'end' }, layer));
    for (let t = 0; t < n; t++) {
      const [expert, strength] = v.best[l][t];
      const rect = node('rect', { x: (left + t * cell).toFixed(1), y: y.toFixed(1), width: (cell - 1).toFixed(1), height: (tall - 1).toFixed(1), 'data-at': `${l},${t}` });
      rect.style.fill = expert < 0 ? 'none' : `color-mix(in oklab, var(--expert-${expert % COLOURS}) ${(10 + 85 * strength).toFixed(0)}%, var(--panel))`;
      if (l === v.layer && t === v.token) rect.classList.add('picked');
      svg.append(rect);
      cells.set(`${l},${t}`, rect);
    }
  });
  svg.append(node('text', { class: 'tick axis', x: left - 8, y: top - 5, 'text-anchor': 'end' }, 'layer'));
  if (cell >= 9) v.tokens.forEach((token, t) => {
    const x = left + (t + .5) * cell + 3, y = top + deep * tall + 7;
    svg.append(node('text', { class: `token ${t === v.token ? 'on' : ''}`, x, y, 'text-anchor': 'end', transform: `rotate(-55 ${x} ${y})` }, clip(seen(token))));
  });
  legend(svg, v, left, H - key + 8, width);
  const first = v.roles.indexOf('answer');
  if (first > 0) svg.append(node('line', { class: 'border', x1: left + first * cell - .5, x2: left + first * cell - .5, y1: 3, y2: top + deep * tall + 3 }),
    node('text', { class: 'tick axis', x: left + first * cell + 3, y: top - 5 }, 'answer'));
  mount.replaceChildren(svg);
}

// Which colour is which expert, and what the tint says; a saved picture stands alone.
function legend(svg, v, left, y, width) {
  svg.append(node('text', { class: 'tick axis', x: left - 8, y: y + 9, 'text-anchor': 'end' }, 'expert'));
  const many = Math.min(v.experts || 0, COLOURS);
  for (let e = 0; e < many; e++) {
    const box = node('rect', { x: left + e * 30, y, width: 10, height: 10, rx: 2 });
    box.style.fill = `var(--expert-${e})`;
    svg.append(box, node('text', { class: 'tick', x: left + e * 30 + 14, y: y + 9 }, e));
  }
  const more = v.experts > COLOURS ? `colours repeat up to ${v.experts - 1}; ` : '', room = (width - left - many * 30 - 20) / 5;
  const text = more + (v.caption || '');
  svg.append(node('text', { class: 'tick', x: left + many * 30 + 10, y: y + 9 }, text.length > room ? text.slice(0, room - 1) + '…' : text));
}

function say(key, x, y) {
  const v = props.value, [l, t] = key.split(',').map(Number), [expert, , gate] = v.best[l][t];
  tip.textContent = `${seen(v.tokens[t])} · layer ${v.layers[l]} · ` + (expert < 0 ? 'no gate here' : `expert ${expert}, gate ${gate.toFixed(3)}`);
  tip.style.display = 'block';
  const box = element.getBoundingClientRect();
  tip.style.left = Math.max(0, Math.min(x - box.left + 12, box.width - tip.offsetWidth - 8)) + 'px';
  tip.style.top = y - box.top + 16 + 'px';
}

function choose(key) {
  const [layer, token] = key.split(',').map(Number);
  trigger('select', { layer, token });
}
const hush = () => { tip.style.display = 'none'; };
element.addEventListener('mousemove', event => event.target.dataset?.at ? say(event.target.dataset.at, event.clientX, event.clientY) : hush());
element.addEventListener('mouseleave', hush);
element.addEventListener('focusout', hush);
element.addEventListener('click', event => { if (event.target.dataset?.at) choose(event.target.dataset.at); });
element.addEventListener('keydown', event => {
  const v = props.value, step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [1, 0], ArrowDown: [-1, 0] }[event.key];
  if (event.key === 'Enter' && cursor) return choose(cursor);
  if (!step || !v) return;
  event.preventDefault();
  const [l, t] = (cursor || `${Math.max(0, v.layer ?? 0)},${Math.max(0, v.token ?? 0)}`).split(',').map(Number);
  const next = `${l + step[0]},${t + step[1]}`;
  if (!cells.has(next)) return;
  cells.get(cursor)?.classList.remove('cursor');
  cursor = next;
  cells.get(next).classList.add('cursor');
  const box = cells.get(next).getBoundingClientRect();
  say(next, box.right, box.bottom);
});
let resting = 0, wide = 0;
new ResizeObserver(() => { if (mount.clientWidth !== wide) { wide = mount.clientWidth; cancelAnimationFrame(resting); resting = requestAnimationFrame(draw); } }).observe(mount);
watch('value', () => { cursor = null; draw(); });
draw();
