// What is wrong with cells of a grid: the sentences here, a mark with the sentence on each cell there.
const mount = element.querySelector('.mount');
const make = (name, text) => Object.assign(document.createElement(name), { textContent: text });

function draw() {
  const v = props.value || {};
  mount.replaceChildren(...(v.said || []).map(one => {
    const box = make('div', '');
    box.className = 'problem';
    box.setAttribute('role', 'alert');
    box.append(make('b', one.message), ' ', make('span', one.hint));
    return box;
  }));
  const grid = document.getElementById(props.grid);
  if (grid) { grid.cellMarks = v.cells || {}; grid.dispatchEvent(new CustomEvent('marks')); }
}
watch('value', draw);
draw();
