// Whoever is signed in no longer is led to the sign-in page; what viewers cannot do looks like it.
(() => {
  const ask = window.fetch;
  window.fetch = async (...given) => {
    const answer = await ask(...given);
    if (answer.status === 401 && new URL(answer.url, location).origin === location.origin) {
      location.assign('/login?next=' + encodeURIComponent(location.pathname + location.search));
    }
    return answer;
  };
  document.documentElement.dataset.role = (window.gradio_config?.username ?? '').split(' ')[0];
})();
