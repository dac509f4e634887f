// A picture that Python drew (its texts escaped there), with the buttons that save it.
const mount = element.querySelector('.mount');
window.tesseraSaveButtons(element, () => mount.querySelector('svg'), () => props.value?.name || 'figure');
const draw = () => { mount.innerHTML = props.value?.html || ''; };
watch('value', draw);
draw();
