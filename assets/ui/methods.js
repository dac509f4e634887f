// The list of methods with a filter: links that open a method here, or in a tab of their own. Data are written as text.
const mount = element.querySelector('.mount');
const node = (tag, className = '', text = '') => Object.assign(document.createElement(tag), { className, textContent: text });
const filter = Object.assign(node('input'), { type: 'search', placeholder: 'Filter: a name, a word, a paper', ariaLabel: 'Filter the methods' });
const list = node('nav', 'method-list');
list.setAttribute('aria-label', 'Methods');
mount.replaceChildren(filter, list);

function line(one, chosen) {
  const link = Object.assign(node('a', one.name === chosen ? 'method on' : 'method'), { href: one.href || `/methods?method=${encodeURIComponent(one.name)}` });
  link.dataset.method = one.name;
  if (one.name === chosen) link.setAttribute('aria-current', 'page');
  const top = node('span', 'top');
  top.append(node('b', '', one.title));
  if (one.badge) top.append(node('em', 'badge', one.badge));
  link.append(top, node('small', '', one.summary));
  return link;
}

function draw() {
  const v = props.value;
  if (!v?.methods) return;
  const focus = mount.contains(document.activeElement) ? document.activeElement.dataset?.method : null;
  const asked = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
  const matches = one => asked.every(word => `${one.name} ${one.title} ${one.summary} ${one.badge || ''} ${one.words}`.toLowerCase().includes(word));
  const found = v.methods.filter(matches);
  list.replaceChildren(...found.map(one => line(one, v.chosen)));
  if (!found.length) list.append(node('p', 'none', 'No method matches. The filter looks at names, words, summaries and papers.'));
  if (focus) list.querySelector(`[data-method="${CSS.escape(focus)}"]`)?.focus({ preventScroll: true });
}

filter.addEventListener('input', draw);
// Links of the text lead to methods too; it comes from another component, so they are caught where all clicks arrive.
document.addEventListener('click', event => {
  const link = event.target.closest?.('.method-list a, .method-text a[href^="/methods?method="]');
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
  event.preventDefault();
  if (!list.contains(link)) window.scrollTo({ top: 0 });
  trigger('select', { method: new URL(link.href).searchParams.get('method') });
});
element.addEventListener('keydown', event => {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key], all = [...list.querySelectorAll('a')];
  const at = all.indexOf(document.activeElement);
  if (!step || (at < 0 && document.activeElement !== filter)) return;
  event.preventDefault();
  all[Math.max(0, Math.min(all.length - 1, at + step))]?.focus();
});
function show() {
  draw();
  const on = list.querySelector('.on');  // where the list is a short one that scrolls
  if (on && list.scrollHeight > list.clientHeight) list.scrollTop = on.offsetTop - list.offsetTop - 60;
}
watch('value', show);
show();
