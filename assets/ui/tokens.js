// A text as tokens, each tinted by the expert with the largest gate; hover or focus shows the whole distribution.
const mount = element.querySelector('.mount');
const tip = document.createElement('div');
tip.className = 'tip bars';
element.appendChild(tip);
const COLOURS = 8;
let chosen = null;

const seen = text => text.replace(/\n/g, '⏎').replace(/\t/g, '⇥').replace(/^ +| +$/g, spaces => '·'.repeat(spaces.length)) || '∅';

function draw() {
  const v = props.value || { tokens: [] }, last = v.tokens.length - 1;
  const pieces = v.tokens.flatMap((token, i) => {
    const span = document.createElement('span'), best = token.g.length ? token.g.indexOf(Math.max(...token.g)) : -1;
    span.textContent = seen(token.t);  // textContent: model text never becomes markup
    span.dataset.i = i;
    span.tabIndex = i === (chosen ?? 0) ? 0 : -1;  // one stop for Tab, arrows inside
    span.className = `${token.role || 'prompt'}${i === chosen ? ' chosen' : ''}`;
    span.setAttribute('role', 'button');
    span.setAttribute('aria-label', best < 0 ? token.t : `${token.t}: expert ${best + 1}, ${token.g[best].toFixed(2)}`);
    if (best >= 0) {
      span.style.setProperty('--hue', `var(--expert-${best % COLOURS})`);
      span.style.setProperty('--strength', (12 + 62 * token.g[best]).toFixed(0) + '%');
    }
    return token.t.includes('\n') && i !== last ? [span, Object.assign(document.createElement('b'), { className: 'break' })] : [span];
  });
  mount.replaceChildren(...pieces, legend(v));
}

function legend(v) {
  const bar = document.createElement('p'), count = Math.max(0, ...v.tokens.map(t => t.g.length));
  bar.className = 'legend';
  for (let e = 0; e < count; e++) {
    const key = document.createElement('em');
    key.style.setProperty('--hue', `var(--expert-${e % COLOURS})`);
    key.textContent = `expert ${e + 1}`;
    bar.append(key);
  }
  if (v.note) bar.append(Object.assign(document.createElement('small'), { textContent: v.note }));
  return bar;
}

function show(span) {
  const token = props.value.tokens[span.dataset.i];
  tip.replaceChildren(...token.g.map((g, e) => {
    const line = document.createElement('div');
    const name = Object.assign(document.createElement('b'), { textContent: e + 1 }), bar = document.createElement('i');
    bar.style.cssText = `width:${(g * 110).toFixed(0)}px;background:var(--expert-${e % COLOURS})`;
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
element.addEventListener('click', event => { if (event.target.dataset?.i) choose(event.target); });
element.addEventListener('keydown', event => {
  const here = event.target.dataset?.i;
  if (here === undefined) return;
  if (event.key === 'Enter' || event.key === ' ') { event.preventDefault(); return choose(event.target); }
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key], next = step && mount.querySelector(`[data-i="${Number(here) + step}"]`);
  if (next) { event.preventDefault(); next.tabIndex = 0; next.focus(); }
});
watch('value', () => { chosen = null; draw(); });
draw();
