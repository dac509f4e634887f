// Whoever is signed in no longer is led to the sign-in page; what somebody's role does not allow looks like it.
(() => {
  const ask = window.fetch;
  window.fetch = async (...given) => {
    const answer = await ask(...given);
    if (answer.status === 401 && new URL(answer.url, location).origin === location.origin) {
      location.assign('/login?next=' + encodeURIComponent(location.pathname + location.search));
    }
    return answer;
  };
  const ranks = ['viewer', 'researcher', 'admin'], role = (window.gradio_config?.username ?? '').split(' ')[0];
  document.documentElement.dataset.role = role;
  const above = ranks.includes(role) ? ranks.slice(ranks.indexOf(role) + 1) : [];
  // The server refuses them anyway; what it draws anew, and makes ready for others, is shut again.
  const shut = () => above.forEach(needed => document.querySelectorAll('.needs-' + needed).forEach(part => {
    part.dataset.shut = '';
    part.title = `This needs ${needed === 'admin' ? 'an' : 'a'} ${needed}, and you are a ${role}.`;
    const controls = part.matches('button') ? [part] : part.querySelectorAll('button, input, textarea');
    controls.forEach(one => { if (!one.disabled) one.disabled = true; });
  }));
  const seen = { childList: true, subtree: true, attributes: true, attributeFilter: ['class', 'disabled'] };
  if (above.length) new MutationObserver(shut).observe(document, seen);
})();
