// The moments of a run as a slider with named stops, and a button that plays them one after another.
const mount = element.querySelector('.mount');
const PAUSE = 1100;
let timer = null, shape = '';

const make = (name, className = '', text = '') => Object.assign(document.createElement(name), { className, textContent: text });

function frame(v) {
  const line = make('div', 'line'), play = make('button', 'play', '▶'), rail = make('div', 'rail'), input = make('input'), stops = make('div', 'stops');
  Object.assign(input, { type: 'range', min: 0, max: Math.max(0, v.stops.length - 1), step: 1, disabled: v.stops.length < 2 });
  input.setAttribute('aria-label', 'Moment of training');
  Object.assign(play, { title: 'Play the moments', disabled: v.stops.length < 2 });
  play.setAttribute('aria-label', 'Play the moments');
  v.stops.forEach((stop, i) => {
    const label = make('span', '', stop.short);
    label.style.left = v.stops.length > 1 ? `${i / (v.stops.length - 1) * 100}%` : '0';
    stops.append(label);
  });
  rail.append(input, stops);
  line.append(make('label', '', 'Moment'), play, rail, make('output'));
  mount.replaceChildren(line);
  input.addEventListener('input', () => { stop(); go(Number(input.value)); });
  play.addEventListener('click', () => timer ? stop() : start());
}

function draw() {
  const v = props.value;
  if (!v?.stops?.length) { mount.replaceChildren(); shape = ''; return stop(); }
  const now = JSON.stringify(v.stops);
  if (now !== shape) { frame(v); shape = now; }
  mount.querySelector('input').value = v.at;
  mount.querySelector('input').setAttribute('aria-valuetext', v.stops[v.at]?.text || '');
  mount.querySelector('output').textContent = v.stops[v.at]?.text || '';
  mount.querySelectorAll('.stops span').forEach((n, i) => n.classList.toggle('on', i === v.at));
  mount.querySelector('.play').textContent = timer ? '❚❚' : '▶';
}

function go(at) {
  props.value = { ...props.value, at };
  draw();
  trigger('input', { at });
}

function start() {
  const v = props.value;
  timer = setInterval(() => {
    const next = props.value.at + 1;
    if (next >= props.value.stops.length || !element.isConnected) return stop();
    go(next);
  }, PAUSE);
  go(v.at >= v.stops.length - 1 ? 0 : v.at + 1);
}

function stop() {
  clearInterval(timer);
  timer = null;
  if (mount.querySelector('.play')) mount.querySelector('.play').textContent = '▶';
}
watch('value', draw);
draw();
