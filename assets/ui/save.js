// Saves a picture of a page as it looks: colours and fonts are written into a copy of the SVG, since a file has no style sheet.
const tesseraFonts = () => tesseraFonts.read ||= Promise.all([['Source Sans Pro', 'SourceSansPro-Regular', 400], ['Source Sans Pro', 'SourceSansPro-Bold', 700],
  ['IBM Plex Mono', 'IBMPlexMono-Regular', 400]].map(async ([family, file, weight]) => {
  const bytes = await (await fetch(`/static/fonts/${file.split('-')[0]}/${file}.woff2`)).blob();
  const data = await new Promise(done => { const reader = new FileReader(); reader.onload = () => done(reader.result); reader.readAsDataURL(bytes); });
  return [family, `@font-face { font-family:'${family}'; font-weight:${weight}; src:url(${data.replace(/^data:[^;]*/, 'data:font/woff2')}) format('woff2'); }`];
})).catch(() => []);  // without them the picture is saved in the fonts of whoever opens it

window.tesseraSave = async (svg, name, kind) => {
  const wanted = ['fill', 'fill-opacity', 'stroke', 'stroke-width', 'stroke-opacity', 'stroke-dasharray', 'opacity',
    'font-size', 'font-weight', 'font-style', 'font-family', 'text-anchor', 'visibility'];
  const copy = svg.cloneNode(true), from = [svg, ...svg.querySelectorAll('*')], to = [copy, ...copy.querySelectorAll('*')];
  from.forEach((node, i) => {
    const style = getComputedStyle(node);
    wanted.forEach(key => { const value = style.getPropertyValue(key); if (value) to[i].style.setProperty(key, value); });
  });
  const [, , width, height] = svg.getAttribute('viewBox').split(/\s+/).map(Number);
  copy.setAttribute('xmlns', 'http://www.w3.org/2000/svg');
  copy.setAttribute('width', width);
  copy.setAttribute('height', height);
  const paper = document.createElementNS('http://www.w3.org/2000/svg', 'rect');
  paper.setAttribute('width', '100%');
  paper.setAttribute('height', '100%');
  paper.setAttribute('fill', getComputedStyle(document.body).getPropertyValue('--panel') || '#fff');
  copy.prepend(paper);
  const families = new Set([svg, ...svg.querySelectorAll('text')].map(node => getComputedStyle(node).fontFamily.split(',')[0].replace(/["']/g, '')));
  const style = document.createElementNS('http://www.w3.org/2000/svg', 'style');
  style.textContent = (await tesseraFonts()).filter(([family]) => families.has(family)).map(([, rule]) => rule).join('\n');
  copy.prepend(style);
  const source = URL.createObjectURL(new Blob([new XMLSerializer().serializeToString(copy)], { type: 'image/svg+xml' }));
  const give = (url, end) => {
    const link = document.createElement('a');
    link.href = url;
    link.download = `${name}.${end}`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(url), 10_000);
  };
  if (kind === 'svg') return give(source, 'svg');
  const image = new Image(), scale = 3;  // three pixels a unit: sharp in print at column width
  image.onload = () => {
    const canvas = document.createElement('canvas');
    canvas.width = width * scale;
    canvas.height = height * scale;
    canvas.getContext('2d').drawImage(image, 0, 0, canvas.width, canvas.height);
    canvas.toBlob(blob => give(URL.createObjectURL(blob), 'png'), 'image/png');
    URL.revokeObjectURL(source);
  };
  image.src = source;
};

// The buttons of a picture: `host` gets SVG and PNG, `svg()` finds the picture when one is pressed.
window.tesseraSaveButtons = (host, svg, name) => {
  const bar = document.createElement('div');
  bar.className = 'save-buttons';
  for (const kind of ['svg', 'png']) {
    const button = document.createElement('button');
    button.textContent = kind.toUpperCase();
    button.title = `Save this picture as ${kind.toUpperCase()}`;
    button.addEventListener('click', event => { event.stopPropagation(); const found = svg(); if (found) window.tesseraSave(found, name(), kind); });
    bar.appendChild(button);
  }
  host.appendChild(bar);
};
