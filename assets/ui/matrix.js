// A small square of numbers with names on both sides, and below it what they are: a saved picture stands alone.
const NS = 'http://www.w3.org/2000/svg', STEPS = 32;
const mount = element.querySelector('.mount');
window.tesseraSaveButtons(element, () => mount.querySelector('svg'), () => props.value?.name || 'similarity');

const node = (name, attributes = {}, text = null) => {
  const made = document.createElementNS(NS, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== null) made.textContent = text;
  return made;
};
const WIDE = 6.9, SLANT = Math.sin(38 * Math.PI / 180);  // width of a letter of a name; how far slanted names hang down
const clip = text => text.length > 16 ? text.slice(0, 15) + '…' : text;

function draw() {
  const v = props.value;
  if (!v || !v.names?.length) { mount.replaceChildren(); return; }
  const n = v.names.length, cell = Math.max(26, Math.min(52, 380 / n)), left = 116, top = 14, signed = v.mid !== undefined;
  const low = signed ? v.mid - v.top : v.low ?? 0, high = signed ? v.mid + v.top : v.top;  // mid: a scale with two ends
  const hang = 24 + SLANT * WIDE * Math.max(...v.names.map(name => clip(name).length)), foot = top + n * cell + hang;
  const words = [v.figure, v.caption].filter(Boolean), W = Math.max(left + n * cell + 12, 330), H = foot + 15 * words.length + 4;
  const svg = node('svg', { viewBox: `0 0 ${W} ${H}`, role: 'img', 'aria-label': `${v.figure} between ${v.names.join(', ')}` });
  svg.style.maxWidth = `${W * 1.2}px`;
  v.names.forEach((name, i) => {
    svg.append(node('text', { class: 'head', x: left - 8, y: top + (i + .5) * cell + 4, 'text-anchor': 'end' }, clip(name)));
    const x = left + (i + .5) * cell, y = top + n * cell + 14;
    svg.append(node('text', { class: 'head', x, y, 'text-anchor': 'end', transform: `rotate(-38 ${x} ${y})` }, clip(name)));
    v.names.forEach((_, j) => {
      const value = v.values[i][j], x0 = left + j * cell, y0 = top + i * cell;
      if (value === null) return svg.append(node('rect', { x: x0, y: y0, width: cell - 1, height: cell - 1, class: 'absent' }));
      const at = Math.max(0, Math.min(1, (value - low) / ((high - low) || 1))), step = Math.round(at * STEPS);
      const box = node('rect', { x: x0, y: y0, width: cell - 1, height: cell - 1 });
      box.style.fill = `var(--${signed ? 'diverge' : 'heat'}-${step})`;
      const label = node('text', { x: x0 + cell / 2, y: y0 + cell / 2 + 4, 'text-anchor': 'middle', class: (signed ? Math.abs(at - .5) > .3 : at > .46) ? 'on-dark' : 'on-light' }, value.toFixed(2));
      svg.append(box, label);
    });
  });
  words.forEach((text, i) => svg.append(node('text', { class: i ? 'tick' : 'unit', x: left, y: foot + 11 + 15 * i }, text)));
  mount.replaceChildren(svg);
}
watch('value', draw);
draw();
