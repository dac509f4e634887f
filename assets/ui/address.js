// The address bar follows the page: the value is a query string. What others wrote into it under other names stays.
function follow() {
  if (typeof props.value !== 'string' || !props.value) return;
  const wanted = new URLSearchParams(props.value);
  const kept = new URLSearchParams(location.search);
  for (const name of (props.owns || '').split(' ')) kept.delete(name);
  for (const [name, text] of wanted) kept.set(name, text);
  history.replaceState(null, '', `${location.pathname}?${kept}`);
}
watch('value', follow);
follow();
