// A text as tokens, each tinted by the expert with the largest gate; a press on an expert tints by that one alone.
const mount = element.querySelector('.mount');
const tip = document.createElement('div');
tip.className = 'tip bars';
element.appendChild(tip);
const COLOURS = 8;
let chosen = null, alone = null;

const seen = text => text.replace(/\n/g, '⏎').replace(/\t/g, '⇥').replace(/^ +| +$/g, spaces => '·'.repeat(spaces.length)) || '∅';
const hue = e => `var(--expert-${e % COLOURS})`;
const best = g => g.length ? g.indexOf(Math.max(...g)) : -1;

// How strongly a token is tinted: nothing at an even share (or the average weight), all at the largest gate of the text.
function strength(v, g) {
  const even = v.even ?? 1 / g.length, top = v.top || 1, value = alone === null ? Math.max(...g) : g[alone] ?? 0;
  if (alone !== null) return Math.max(0, Math.min(1, value / top));
  return Math.max(0, Math.min(1, (value - even) / Math.max(top - even, 1e-6)));
}

function draw() {
  const v = props.value || { tokens: [] };
  if (!v.tokens?.length) { mount.replaceChildren(); return; }
  chosen = Number.isInteger(v.picked) ? v.picked : chosen;
  const last = v.tokens.length - 1;
  const pieces = v.tokens.flatMap((token, i) => {
    const span = document.createElement('span'), e = alone ?? best(token.g);
    span.textContent = seen(token.t);  // textContent: model text never becomes markup
    span.dataset.i = i;
    span.tabIndex = i === (chosen ?? 0) ? 0 : -1;  // one stop for Tab, arrows inside
    span.className = `${token.role || 'prompt'}${i === chosen ? ' chosen' : ''}${token.special ? ' special' : ''}`;
    span.setAttribute('role', 'button');
    span.setAttribute('aria-label', e < 0 || !token.g.length ? token.t : `${token.t}: expert ${e}, ${(token.g[e] ?? 0).toFixed(2)}`);
    if (token.g.length && e >= 0) {
      span.style.setProperty('--hue', hue(e));
      span.style.setProperty('--strength', (6 + 64 * strength(v, token.g)).toFixed(0) + '%');
    }
    return token.t.includes('\n') && i !== last ? [span, Object.assign(document.createElement('b'), { className: 'break' })] : [span];
  });
  mount.replaceChildren(...pieces, legend(v));
}

function legend(v) {
  const bar = document.createElement('p'), count = Math.max(0, ...v.tokens.map(t => t.g.length));
  bar.className = 'legend';
  const words = v.tokens.filter(t => t.g.length), share = e => words.filter(t => best(t.g) === e).length;
  for (let e = 0; e < count; e++) {
    const key = Object.assign(document.createElement('button'), { textContent: `expert ${e}`, title: 'Tint by this expert alone' });
    key.append(Object.assign(document.createElement('small'), { textContent: ` ${share(e)}` }));
    key.style.setProperty('--hue', hue(e));
    key.setAttribute('aria-pressed', alone === e);
    key.dataset.expert = e;
    bar.append(key);
  }
  const note = alone === null ? v.note : `${v.note ? v.note + ' · ' : ''}tinted by the gate of expert ${alone}`;
  if (note) bar.append(Object.assign(document.createElement('small'), { textContent: note }));
  return bar;
}

function show(span) {
  const token = props.value.tokens[span.dataset.i], top = Math.max(...token.g.map(Math.abs), 1e-9);
  tip.replaceChildren(...token.g.map((g, e) => {
    const line = document.createElement('div');
    const name = Object.assign(document.createElement('b'), { textContent: e }), bar = document.createElement('i');
    bar.style.cssText = `width:${(Math.abs(g) / top * 110).toFixed(0)}px;background:${g < 0 ? 'var(--diverge-3)' : hue(e)}`;
    line.append(name, bar, Object.assign(document.createElement('em'), { textContent: g.toFixed(3) }));
    return line;
  }));
  if (!token.g.length) tip.textContent = 'no gate saw this token';
  const box = element.getBoundingClientRect(), here = span.getBoundingClientRect();
  tip.style.display = 'block';
  tip.style.left = Math.max(0, Math.min(here.left - box.left, box.width - 210)) + 'px';
  const above = here.top - box.top - tip.offsetHeight - 6;
  tip.style.top = (here.top - tip.offsetHeight - 6 > 60 ? above : here.bottom - box.top + 6) + 'px';
}

function choose(span) {
  chosen = Number(span.dataset.i);
  mount.querySelectorAll('.chosen').forEach(n => n.classList.remove('chosen'));
  span.classList.add('chosen');
  trigger('select', { index: chosen });
}

for (const kind of ['mouseover', 'focusin']) element.addEventListener(kind, event => { if (event.target.dataset?.i) show(event.target); });
for (const kind of ['mouseout', 'focusout']) element.addEventListener(kind, () => { tip.style.display = 'none'; });
element.addEventListener('click', event => {
  const key = event.target.closest?.('[data-expert]');
  if (key) { alone = alone === Number(key.dataset.expert) ? null : Number(key.dataset.expert); draw(); return mount.querySelector(`[data-expert="${key.dataset.expert}"]`)?.focus(); }
  if (event.target.dataset?.i) choose(event.target);
});
element.addEventListener('keydown', event => {
  const here = event.target.dataset?.i;
  if (here === undefined) return;
  if (event.key === 'Enter' || event.key === ' ') { event.preventDefault(); return choose(event.target); }
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key], next = step && mount.querySelector(`[data-i="${Number(here) + step}"]`);
  if (next) { event.preventDefault(); event.target.tabIndex = -1; next.tabIndex = 0; next.focus(); }
});
watch('value', () => {
  chosen = Number.isInteger(props.value?.picked) ? props.value.picked : null;
  if (alone !== null && alone >= Math.max(0, ...(props.value?.tokens || []).map(t => t.g.length))) alone = null;
  draw();
});
draw();
