// A form from descriptions of settings: groups of fields, their values, and what they are compared with.
const mount = element.querySelector('.mount');
let shape = '', timer = null, unsent = null;

const make = (name, attributes = {}, ...inside) => {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) key === 'text' ? made.textContent = value : value !== null && value !== undefined && made.setAttribute(key, value);
  made.append(...inside);
  return made;
};
const plain = value => value === null || value === undefined || value === '' || (Array.isArray(value) && !value.length) ? '' : JSON.stringify(value);
const shown = value => value === null || value === undefined || value === '' ? 'empty' : Array.isArray(value) ? value.join(', ') || 'empty' : String(value);

function control(field, id) {
  const common = { id, 'data-name': field.name, 'data-lazy': field.lazy ? '1' : null, 'aria-describedby': field.help ? `${id}-help` : null };
  if (field.type === 'boolean') return make('input', { ...common, type: 'checkbox' });
  if (field.type === 'choice') {
    const made = make('select', common), choices = field.optional ? [['', field.empty || '—'], ...field.choices] : field.choices;
    for (const choice of choices) {
      const [value, text] = Array.isArray(choice) ? choice : [choice, choice];
      made.append(make('option', { value, text }));
    }
    return made;
  }
  if (field.type === 'several') {
    const made = make('div', { ...common, class: 'several', role: 'group', 'aria-label': field.label });
    for (const choice of field.choices) made.append(make('button', { type: 'button', 'data-choice': choice, 'aria-pressed': 'false', text: choice }));
    return made;
  }
  if (field.type === 'long') return make('textarea', { ...common, rows: field.rows || 2, spellcheck: 'false', placeholder: field.empty || '' });
  const bounds = field.bounds || {}, numeric = field.type === 'integer' || field.type === 'number';
  const made = make('input', { ...common, type: 'text', inputmode: numeric ? 'decimal' : null, autocomplete: 'off', spellcheck: 'false', placeholder: field.empty || '',
    class: numeric ? 'num' : null, 'data-min': bounds.minimum, list: field.suggestions?.length ? `${id}-list` : null });
  return made;
}

let serial = 0;
function fieldset(field) {
  const id = `f${element.id || ''}${serial++}-${field.name.replace(/\W+/g, '-')}`;
  const label = make('label', { for: id }, make('span', { text: field.label }));
  if (field.unit) label.append(make('em', { text: field.unit }));
  const reset = make('button', { type: 'button', class: 'reset', 'data-reset': field.name, text: '↺', hidden: '' });
  const box = make('div', { class: `field ${field.wide ? 'wide' : ''} ${field.type}`, 'data-field': field.name }, make('div', { class: 'head' }, label, reset), control(field, id));
  if (field.suggestions?.length) box.append(make('datalist', { id: `${id}-list` }, ...field.suggestions.map(value => make('option', { value }))));
  if (field.help) box.append(make('small', { id: `${id}-help`, title: field.help, text: field.help }));
  box.append(make('small', { class: 'wrong', role: 'alert' }));
  return box;
}

const fold = (title, open, ...inside) => {
  const made = make('details', { 'data-group': title }, make('summary', {}, make('span', { text: title }), make('em', { class: 'marks' })), ...inside);
  made.open = open;
  return made;
};

// A group stands open, folds away, or lies with others inside one fold.
function build(v) {
  const open = new Map([...mount.querySelectorAll('details')].map(node => [node.dataset.group, node.open])), outer = new Map();
  mount.replaceChildren();
  for (const group of v.groups) {
    const inside = [...(group.note ? [make('p', { text: group.note })] : []), make('div', { class: 'fields' }, ...group.fields.map(fieldset))];
    const title = group.title && !group.fold ? [make('h3', { text: group.title })] : [];
    const node = group.fold ? fold(group.title, open.get(group.title) ?? !!group.open, ...inside) : make('section', {}, ...title, ...inside);
    if (group.inside && !outer.has(group.inside)) {
      outer.set(group.inside, fold(group.inside, !!open.get(group.inside)));
      mount.append(outer.get(group.inside));
    }
    (outer.get(group.inside) || mount).append(node);
  }
}

function fill(v) {
  for (const node of mount.querySelectorAll('[data-name]')) {
    const name = node.dataset.name, value = v.values[name];
    if (node.type === 'checkbox') node.checked = !!value;
    else if (node.classList.contains('several')) for (const button of node.children) button.setAttribute('aria-pressed', (value || []).includes(button.dataset.choice));
    else {
      const text = value === null || value === undefined ? '' : Array.isArray(value) ? value.join(', ') : String(value);
      if (node !== document.activeElement || !unsent) { if (node.value !== text) node.value = text; }
      if (node.tagName === 'SELECT' && node.value !== text) node.selectedIndex = text === '' ? 0 : -1;
    }
  }
  mark(v);
}

// What differs from the base of comparison is marked and can be set back; what is wrong says so under its field.
function mark(v) {
  for (const box of mount.querySelectorAll('[data-field]')) {
    const name = box.dataset.field, known = v.base && name in v.base, differs = known && plain(v.base[name]) !== plain(v.values[name]);
    box.classList.toggle('changed', !!differs);
    const reset = box.querySelector('.reset');
    reset.hidden = !differs;
    if (differs) { reset.title = `Set back to ${shown(v.base[name])}`; reset.setAttribute('aria-label', reset.title); }
    const wrong = v.problems?.[name] || '';
    box.querySelector('.wrong').textContent = wrong;
    box.classList.toggle('bad', !!wrong);
  }
  for (const group of mount.querySelectorAll('details')) {
    const count = group.querySelectorAll('.changed').length;
    group.querySelector('.marks').textContent = count ? `${count} changed` : '';
  }
}

function draw() {
  const v = props.value;
  if (!v?.groups) { mount.replaceChildren(); shape = ''; return; }
  const now = JSON.stringify(v.groups);
  if (now !== shape) { build(v); shape = now; }
  fill(v);
}

function read(node) {
  if (node.type === 'checkbox') return node.checked;
  if (node.classList.contains('several')) return [...node.children].filter(b => b.getAttribute('aria-pressed') === 'true').map(b => b.dataset.choice);
  return node.value;
}

function send(name, value) {
  const v = props.value, next = { ...v, values: { ...v.values, [name]: value }, problems: {} };
  props.value = next;
  mark(next);
  trigger('input', { name });
}

const flush = () => { clearTimeout(timer); if (unsent) { const [name, value] = unsent; unsent = null; send(name, value); } };
element.addEventListener('input', event => {
  const name = event.target.dataset?.name;
  if (!name) return;
  event.stopPropagation();
  if (unsent && unsent[0] !== name) flush();
  unsent = [name, read(event.target)];
  clearTimeout(timer);
  if (event.target.dataset.lazy) return;  // costly to answer: sent when the field is left or Enter is pressed
  timer = setTimeout(flush, event.target.tagName === 'SELECT' || event.target.type === 'checkbox' ? 0 : 300);
});
element.addEventListener('focusout', flush);
element.addEventListener('change', flush);
element.addEventListener('keydown', event => { if (event.key === 'Enter' && event.target.tagName === 'INPUT') flush(); });
element.addEventListener('click', event => {
  const button = event.target.closest('button');
  if (!button) return;
  const v = props.value, { choice, reset } = button.dataset;
  if (reset !== undefined) {
    flush();
    send(reset, props.value.base[reset]);
    return fill(props.value);
  }
  if (choice === undefined) return;
  button.setAttribute('aria-pressed', button.getAttribute('aria-pressed') !== 'true');
  const group = button.parentElement, before = v.values[group.dataset.name] || [], on = read(group);
  send(group.dataset.name, [...before.filter(x => on.includes(x)), ...on.filter(x => !before.includes(x))]);  // in the order of choosing
});
watch('value', draw);
draw();
