// Draw a patient in three linked planes and from outside, on plain canvases: no kernel, no WebGL.
// viewers.slice_viewer writes `data`; volumes are (z, y, x) in LPS, x varies fastest.
async function showPatient(root, data) {
  const [nx, ny, nz] = data.shape, {spacing, floor} = data;  // the brain's gray values begin at floor
  const colors = data.labels.map(label => [1, 3, 5].map(at => parseInt(label.color.slice(at, at + 2), 16)));
  // Axes across, down and through each plane; letters at its left, right, top and bottom.
  const planes = [["axial", 0, 1, 2, "RLAP"], ["coronal", 0, 2, 1, "RLSI"], ["sagittal", 1, 2, 0, "APSI"]];

  async function volume(source) {  // unpacks a mosaic of axial slices
    const image = new Image();
    image.src = source;
    await image.decode();
    const canvas = Object.assign(document.createElement("canvas"), {width: image.width, height: image.height});
    const context = canvas.getContext("2d", {willReadFrequently: true});
    context.drawImage(image, 0, 0);
    const pixels = context.getImageData(0, 0, image.width, image.height).data;
    const columns = image.width / nx, out = new Uint8Array(nx * ny * nz);
    for (let z = 0, i = 0; z < nz; z++) for (let y = 0; y < ny; y++) {
      const start = ((Math.floor(z / columns) * ny + y) * image.width + (z % columns) * nx) * 4;
      for (let x = 0; x < nx; x++) out[i++] = pixels[start + 4 * x];
    }
    return out;
  }
  const images = await Promise.all(data.images.map(image => volume(image.source)));
  const masks = await Promise.all(data.masks.map(mask => volume(mask.source)));

  const options = list => list.map((item, n) => `<option value="${n}">${item.title}</option>`).join("");
  const slider = (name, low, high, value, label) => `<label>${label || name} <input type="range" name="${name}"
    min="${low}" max="${high}" value="${value}"><output name="${name}-is"></output></label>`;
  root.innerHTML = `<style>
    .brats{font:13px system-ui,sans-serif;max-width:680px;color:inherit} .brats canvas{width:100%;background:#000;
    touch-action:none;cursor:crosshair;display:block} .brats canvas:focus{outline:2px solid #0072B2}
    .brats .views{display:grid;grid-template-columns:1fr 1fr;gap:4px} .brats label{margin-right:1em;white-space:nowrap}
    .brats .views>*{min-width:0} .brats .views label{display:flex;gap:6px;margin:0}
    .brats .views input{flex:1;min-width:0} .brats .bar{display:flex;flex-wrap:wrap;gap:4px 0;margin:6px 0}
    .brats input{vertical-align:middle} .brats .bar input[type=range]{width:90px} .brats .words{color:#777;font-style:italic}</style>
    <div class="brats"><div class="bar">
    <label>contrast <select name="image">${options(data.images)}</select></label>
    ${slider("width", 5, 255, 255 - floor, "window")} ${slider("level", floor, 255, (255 + floor) / 2)}</div><div class="bar">
    ${data.masks.length ? `<label>labels <select name="mask">${options(data.masks)}</select></label>` : ""}
    ${slider("opacity", 0, 100, data.masks.length ? 50 : 0)}
    ${data.labels.map((l, n) => `<label style="color:${l.color}"><input type="checkbox" name="label${n + 1}" checked>
    <b>${l.title}</b></label>`).join("")}</div><div class="views">
    ${planes.map(([name, , , axis]) => `<div><canvas tabindex="0" aria-label="${name} slice"></canvas>
    ${slider(name, 0, data.shape[axis] - 1, data.start[axis])}</div>`).join("")}
    <div><canvas tabindex="0" aria-label="tumor in the brain, from outside"></canvas>
    ${slider("turn", 0, 359, 35)}</div></div><div>Click or drag to move the crosshair. Use the wheel or the
    arrow keys to go through the slices, keys 1 to 4 for the contrast, o for the labels. <span class="words">${data.words}</span>
    </div></div>`;
  const control = Object.fromEntries([...root.querySelectorAll("[name]")].map(element => [element.name, element]));
  const canvases = [...root.querySelectorAll("canvas")], at = [...data.start];
  const chosen = name => Number(control[name]?.value ?? 0);
  const shown = () => data.labels.map((_, n) => control[`label${n + 1}`].checked);

  function drawPlane(n) {
    const [name, across, down, through, letters] = planes[n], columns = data.shape[across], rows = data.shape[down];
    const flat = new ImageData(columns, rows), step = [1, nx, nx * ny], visible = shown();
    const image = images[chosen("image")], mask = masks[chosen("mask")], opacity = chosen("opacity") / 100;
    const low = chosen("level") - chosen("width") / 2, gain = 255 / chosen("width");
    for (let r = 0, p = 0; r < rows; r++) {
      let i = at[through] * step[through] + (down === 2 ? rows - 1 - r : r) * step[down];  // the feet are below
      for (let c = 0; c < columns; c++, p += 4, i += step[across]) {
        const gray = image[i] < floor / 2 ? 0 : Math.min(255, Math.max(0, (image[i] - low) * gain));
        const label = mask ? mask[i] : 0, covers = label && visible[label - 1] ? opacity : 0;
        for (let k = 0; k < 3; k++) flat.data[p + k] = gray * (1 - covers) + (covers ? colors[label - 1][k] * covers : 0);
        flat.data[p + 3] = 255;
      }
    }
    const canvas = canvases[n], context = canvas.getContext("2d");
    const scale = Math.min(canvas.width / (columns * spacing[across]), canvas.height / (rows * spacing[down]));
    const wide = columns * spacing[across] * scale, high = rows * spacing[down] * scale;
    const left = (canvas.width - wide) / 2, top = (canvas.height - high) / 2;
    const patch = Object.assign(document.createElement("canvas"), {width: columns, height: rows});
    patch.getContext("2d").putImageData(flat, 0, 0);
    context.imageSmoothingEnabled = false;
    context.clearRect(0, 0, canvas.width, canvas.height);
    context.drawImage(patch, left, top, wide, high);
    const x = left + (at[across] + 0.5) * wide / columns;
    const y = top + ((down === 2 ? rows - 1 - at[down] : at[down]) + 0.5) * high / rows;
    context.fillStyle = "rgba(240,228,66,0.6)";  // the crosshair: the other two planes
    context.fillRect(x, 0, 1, canvas.height);
    context.fillRect(0, y, canvas.width, 1);
    context.fillStyle = "#fff";
    context.font = "14px system-ui, sans-serif";
    [[6, canvas.height / 2], [canvas.width - 16, canvas.height / 2], [canvas.width / 2 - 5, 16],
      [canvas.width / 2 - 5, canvas.height - 6]].forEach(([u, v], k) => context.fillText(letters[k], u, v));
    control[`${name}-is`].value = ` ${data.offset[through] + at[through]}`;
    canvas.place = (u, v) => {  // the voxel at a point of the canvas, 0 to 1
      const column = Math.floor((u * canvas.width - left) / wide * columns);
      const row = Math.floor((v * canvas.height - top) / high * rows);
      return [[across, column], [down, down === 2 ? rows - 1 - row : row]];
    };
  }

  function surface(inside) {  // x, y, z and a normal of every voxel at a border
    const found = [];
    for (let z = 2; z < nz - 2; z++) for (let y = 2; y < ny - 2; y++) for (let x = 2; x < nx - 2; x++) {
      const i = (z * ny + y) * nx + x;
      if (!inside(i) || [1, nx, nx * ny].every(step => inside(i - step) && inside(i + step))) continue;
      const normal = [0, 0, 0];
      for (let dz = -2; dz <= 2; dz++) for (let dy = -2; dy <= 2; dy++) for (let dx = -2; dx <= 2; dx++)
        if (!inside(i + (dz * ny + dy) * nx + dx)) { normal[0] += dx; normal[1] += dy; normal[2] += dz; }
      const length = Math.hypot(...normal) || 1;
      found.push([x, y, z, ...normal.map(part => part / length)]);
    }
    return found;
  }
  function solid(inside) {  // without the specks and pits that noise leaves at a border
    const steps = [1, nx, nx * ny], kept = new Uint8Array(nx * ny * nz);
    for (let z = 1; z < nz - 1; z++) for (let y = 1; y < ny - 1; y++) for (let x = 1; x < nx - 1; x++) {
      const i = (z * ny + y) * nx + x, here = inside(i);
      let most = here ? 27 : 0;
      if (!steps.every(step => inside(i - step) === here && inside(i + step) === here)) {
        most = 0;
        for (let dz = -1; dz <= 1; dz++) for (let dy = -1; dy <= 1; dy++) for (let dx = -1; dx <= 1; dx++)
          most += inside(i + (dz * ny + dy) * nx + dx);
      }
      kept[i] = most > 13;
    }
    return kept;
  }
  const filled = solid(i => images[0][i] > floor / 2), brain = surface(i => filled[i]), known = new Map();
  const borders = label => {  // found once for each label of a mask
    const key = `${chosen("mask")} ${label}`, mask = masks[chosen("mask")];
    if (!known.has(key)) known.set(key, mask ? surface(i => mask[i] === label) : []);
    return known.get(key);
  };

  function splat(points, size) {  // how bright the nearest point of each pixel is; 0: none
    const angle = chosen("turn") * Math.PI / 180, [sin, cos] = [Math.sin(angle), Math.cos(angle)];
    const scale = 0.95 * size / Math.hypot(nx * spacing[0], ny * spacing[1]);
    const dot = Math.ceil(scale * Math.max(...spacing)) + 1;
    const depth = new Float32Array(size * size).fill(1e9), light = new Float32Array(size * size);
    for (const [x, y, z, a, b, c] of points) {
      const px = (x - nx / 2) * spacing[0], py = (y - ny / 2) * spacing[1], pz = (z - nz / 2) * spacing[2];
      const far = -px * sin - py * cos, u = Math.round(size / 2 + scale * (px * cos - py * sin) - dot / 2);
      const v = Math.round(size / 2 - scale * pz - dot / 2);
      const bright = 0.25 + 0.75 * Math.max(0, 0.8 * (a * sin + b * cos) + 0.5 * c);
      for (let s = Math.max(0, v); s < Math.min(size, v + dot); s++)
        for (let r = Math.max(0, u), p = s * size + r; r < Math.min(size, u + dot); r++, p++)
          if (far < depth[p]) { depth[p] = far; light[p] = bright; }
    }
    return light;
  }

  function drawOutside() {
    const canvas = canvases[3], size = canvas.width, flat = new ImageData(size, size), visible = shown();
    flat.data.fill(255);
    const outer = splat(brain, size), layers = [[1, 1], [3, 0.8], [2, 0.5]]  // NCR in ET in ED, and opacity
      .filter(([label]) => visible[label - 1]).map(([label, alpha]) => [splat(borders(label), size), colors[label - 1], alpha]);
    for (let p = 0; p < size * size; p++) {
      const here = layers.filter(([light]) => light[p]), skin = 255 * outer[p] * (here.length ? 0.15 : 0.45);
      for (let k = 0; k < 3; k++)
        flat.data[4 * p + k] = skin + here.reduce((value, [light, color, alpha], n) => {
          const part = n ? alpha / 3 : alpha;  // what lies over another label hardly changes its color
          return value * (1 - part) + color[k] * light[p] * part;
        }, 0);
    }
    const context = canvas.getContext("2d"), angle = chosen("turn") * Math.PI / 180;
    context.putImageData(flat, 0, 0);
    context.fillStyle = "#fff";  // the letters turn with the patient
    [["R", 180], ["L", 0], ["P", 90], ["A", 270]].forEach(([letter, degrees]) => {
      const around = degrees * Math.PI / 180 + angle, nearer = 0.5 + Math.sin(around) / 2;
      context.font = `${10 + 5 * nearer}px system-ui, sans-serif`;
      context.fillText(letter, size / 2 + 0.46 * size * Math.cos(around) - 5, 0.9 * size + 12 * Math.sin(around));
    });
    control["turn-is"].value = ` ${chosen("turn")}°`;
  }

  function draw(outside = true) {
    const range = data.images[chosen("image")], unit = (range.high - range.low) / (255 - floor);
    const gray = value => Math.round(range.low + (value - floor) * unit);
    control["width-is"].value = ` ${Math.round(chosen("width") * unit)}`;
    control["level-is"].value = ` ${gray(chosen("level"))}`;
    control["opacity-is"].value = ` ${chosen("opacity")} %`;
    [0, 1, 2].forEach(drawPlane);
    if (outside) drawOutside();
  }
  function go(axis, index) {
    at[axis] = Math.min(data.shape[axis] - 1, Math.max(0, index));
    control[planes.find(plane => plane[3] === axis)[0]].value = at[axis];
  }

  canvases.forEach((canvas, n) => {
    Object.assign(canvas, {width: 336, height: 336});
    const axis = n < 3 ? planes[n][3] : -1;
    const move = steps => {
      if (n < 3) go(axis, at[axis] + steps); else control.turn.value = (chosen("turn") + 5 * steps + 360) % 360;
      n < 3 ? draw(false) : drawOutside();
    };
    canvas.onwheel = event => { event.preventDefault(); move(Math.sign(event.deltaY) * -1); };
    canvas.onkeydown = event => {
      const steps = {ArrowUp: 1, ArrowRight: 1, ArrowDown: -1, ArrowLeft: -1, PageUp: 10, PageDown: -10}[event.key];
      if (steps) move(steps);
      else if (data.images[event.key - 1]) { control.image.value = event.key - 1; draw(false); }
      else if (event.key === "o") { control.opacity.value = chosen("opacity") ? 0 : 50; draw(false); }
      else return;
      event.preventDefault();
    };
    canvas.onpointerdown = canvas.onpointermove = event => {
      if (!event.buttons) return;
      if (event.type === "pointerdown") { canvas.focus(); canvas.setPointerCapture(event.pointerId); }
      if (n === 3) { control.turn.value = (chosen("turn") + event.movementX + 360) % 360; return drawOutside(); }
      const box = canvas.getBoundingClientRect();
      canvas.place((event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height)
        .forEach(([along, index]) => go(along, index));
      draw(false);
    };
  });
  root.onkeydown = event => {  // or JupyterLab would move to another cell
    if (/^(Arrow|Page|Home|End|[1-9o]$)/.test(event.key)) event.stopPropagation();
  };
  root.oninput = event => {
    planes.forEach(([name, , , axis]) => { at[axis] = chosen(name); });
    event.target.name === "turn" ? drawOutside() : draw(/^label|^mask/.test(event.target.name));
  };
  draw();
}
