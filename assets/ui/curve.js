// Curves that grow: the frame is drawn when the axes change, a tick only moves paths and labels.
const NS = 'http://www.w3.org/2000/svg';
const mount = element.querySelector('.mount');
const W = 680, H = 300, L = 60, R = 16, T = 14, B = 40, COLOURS = 8;
const hidden = new Set();
window.tesseraSaveButtons(element, () => mount.querySelector('svg'), () => props.value?.name || 'curves');
let axes = '', scale = null;

const node = (name, attributes = {}, text = null) => {
  const made = document.createElementNS(NS, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== null) made.textContent = text;
  return made;
};
const shown = v => v.series.filter(s => !hidden.has(s.name) && s.points.length);
const round = least => { const unit = 10 ** Math.floor(Math.log10(least)); return [1, 2, 5, 10].map(m => m * unit).find(step => step >= least * .999); };
const colour = i => `var(--expert-${i % COLOURS})`;

// Round numbers around the data, so that the frame moves rarely while curves grow.
function limits(v) {
  const lines = shown(v), ys = lines.flatMap(s => s.points.map(p => p[1])).filter(Number.isFinite);
  const xs = lines.flatMap(s => [s.points[0][0], s.points[s.points.length - 1][0]]);
  if (!ys.length) return null;
  let low = Math.min(...ys), high = Math.max(...ys);
  if (high === low) { high += .5; low -= .5; }
  const unit = 10 ** Math.floor(Math.log10((high - low) / 4)), step = [1, 2, 5, 10].map(m => m * unit).find(s => (high - low) / s <= 5.5);
  low = Math.floor(low / step) * step;
  high = Math.ceil(high / step) * step;
  return { x0: Math.min(0, ...xs), x1: Math.max(v.xmax || 0, ...xs, 1), low, high, step };
}

function frame(v) {
  const s = scale, svg = node('svg', { viewBox: `0 0 ${W} ${H}`, role: 'img', 'aria-label': `${v.y} over ${v.x} for ${v.series.map(q => q.name).join(', ')}` });
  const digits = Math.max(0, Math.min(6, Math.ceil(-Math.log10(s.step) - 1e-9)));
  for (let y = s.low; y <= s.high + s.step / 2; y += s.step) {
    svg.append(node('line', { x1: L, x2: W - R, y1: Y(y), y2: Y(y) }), node('text', { x: L - 8, y: Y(y) + 4, 'text-anchor': 'end' }, y.toFixed(digits)));
  }
  const apart = Math.max(1, round((s.x1 - s.x0) / 6));
  for (let x = Math.ceil(s.x0 / apart) * apart; x <= s.x1; x += apart) {
    svg.append(node('text', { x: X(x), y: H - B + 16, 'text-anchor': X(x) > W - R - 16 ? 'end' : 'middle' }, x.toLocaleString('en')));
  }
  svg.append(node('text', { class: 'axis', x: (L + W - R) / 2, y: H - 6, 'text-anchor': 'middle' }, v.x),
    node('text', { class: 'axis', x: 11, y: (T + H - B) / 2, transform: `rotate(-90 11 ${(T + H - B) / 2})`, 'text-anchor': 'middle' }, v.y));
  v.series.forEach((q, i) => {
    for (const kind of ['raw', 'smooth']) {
      const path = node('path', { class: kind, 'data-series': i });
      path.style.stroke = colour(q.colour ?? i);
      svg.append(path);
    }
  });
  svg.append(node('line', { class: 'cursor', y1: T, y2: H - B, visibility: 'hidden' }));
  const keys = document.createElement('div');
  keys.className = 'keys';
  v.series.forEach((q, i) => {
    const key = Object.assign(document.createElement('button'), { textContent: q.name, title: 'Show or hide' });
    key.dataset.key = q.name;
    key.setAttribute('aria-pressed', !hidden.has(q.name));
    key.style.setProperty('--hue', colour(q.colour ?? i));
    keys.append(key);
  });
  const read = document.createElement('p');
  read.className = 'read num';
  mount.replaceChildren(svg, keys, read);
}

const X = x => L + (x - scale.x0) / (scale.x1 - scale.x0) * (W - L - R);
const Y = y => H - B - (y - scale.low) / (scale.high - scale.low) * (H - T - B);
const path = points => points.length ? 'M' + points.map(([x, y]) => `${X(x).toFixed(1)} ${Y(y).toFixed(1)}`).join('L') : '';

// The more points, the longer the memory: a short curve drawn by a slow mean would lag behind its own points.
function smooth(points) {
  const keep = Math.min(.9, points.length / 200);
  let mean = points[0]?.[1];
  return points.map(([x, y]) => [x, mean = keep * mean + (1 - keep) * y]);
}

function draw() {
  const v = props.value;
  scale = v?.series?.length ? limits(v) : null;
  if (!scale) { axes = ''; mount.replaceChildren(Object.assign(document.createElement('p'), { className: 'waiting', textContent: v?.empty || 'No points yet.' })); return; }
  const now = JSON.stringify([scale, v.x, v.y, v.series.map(s => [s.name, s.colour]), [...hidden]]);
  if (now !== axes) { frame(v); axes = now; }
  v.series.forEach((s, i) => {
    const off = hidden.has(s.name), points = s.points.filter(p => Number.isFinite(p[1])), soft = s.points.length >= 12 && v.smooth !== false;
    mount.querySelector(`.raw[data-series="${i}"]`).setAttribute('d', off ? '' : path(points));
    mount.querySelector(`.raw[data-series="${i}"]`).classList.toggle('alone', !soft);
    mount.querySelector(`.smooth[data-series="${i}"]`).setAttribute('d', off || !soft ? '' : path(smooth(points)));
  });
  tell(null);
}

function tell(at) {
  const v = props.value, parts = shown(v).slice(0, 6).map(s => {
    const p = at === null ? s.points[s.points.length - 1] : s.points.reduce((a, b) => Math.abs(b[0] - at) < Math.abs(a[0] - at) ? b : a);
    return [p[0], `${s.name} ${Math.abs(p[1]) < .001 && p[1] !== 0 ? p[1].toExponential(2) : p[1].toFixed(3)}`];
  });
  if (parts.length) mount.querySelector('.read').textContent = `${v.x} ${Math.max(...parts.map(p => p[0])).toLocaleString('en')} · ${parts.map(p => p[1]).join(' · ')}`;
}

element.addEventListener('mousemove', event => {
  const svg = mount.querySelector('svg'), box = svg?.getBoundingClientRect();
  if (!scale || !box || event.clientY > box.bottom) return;
  const at = scale.x0 + ((event.clientX - box.left) / box.width * W - L) / (W - L - R) * (scale.x1 - scale.x0);
  const cursor = svg.querySelector('.cursor'), x = X(Math.max(scale.x0, Math.min(scale.x1, at)));
  cursor.setAttribute('visibility', 'visible');
  cursor.setAttribute('x1', x);
  cursor.setAttribute('x2', x);
  tell(at);
});
element.addEventListener('mouseleave', () => { if (!scale) return; mount.querySelector('.cursor')?.setAttribute('visibility', 'hidden'); tell(null); });
element.addEventListener('click', event => {
  const name = event.target.dataset?.key;
  if (name === undefined) return;
  hidden.has(name) ? hidden.delete(name) : hidden.add(name);
  if (!shown(props.value).length) hidden.delete(name);
  draw();
});
watch('value', draw);
draw();
