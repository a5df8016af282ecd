"use strict";
// What the visitor sees: the controls, and a sheet of pictures that follows them.

const MOST_BUTTONS = 40; // classes above which a list takes the place of buttons
const CALLS = [1, 2, 4, 8, 32];
const PICTURES = [1, 4, 16, 64];
const MARGIN = 1; // pixels between pictures
const part = (id) => document.getElementById(id);
const page = { said: null, session: null, label: -1, busy: false, again: false, last: null };

function fail(error) {
  part("progress").hidden = true;
  part("status").classList.add("error");
  part("status").textContent = `This page cannot draw here: ${error.message || error}`;
}

function choices(select, values, chosen) {
  for (const value of [...new Set([...values, chosen])].sort((a, b) => a - b)) select.add(new Option(value, value));
  select.value = String(chosen);
  select.addEventListener("change", draw);
}

function classButtons(names) {
  const pick = (label) => {
    page.label = label;
    for (const button of part("classes").querySelectorAll("button"))
      button.setAttribute("aria-pressed", String(Number(button.value) === label));
    draw();
  };
  if (names.length > MOST_BUTTONS) {
    const select = document.createElement("select");
    select.setAttribute("aria-label", "class");
    names.forEach((name, label) => select.add(new Option(name, label)));
    select.addEventListener("change", () => pick(Number(select.value)));
    part("classes").append(select);
  } else {
    names.forEach((name, label) => {
      const button = document.createElement("button");
      Object.assign(button, { type: "button", textContent: name, value: label });
      button.setAttribute("aria-pressed", String(label === page.label));
      button.addEventListener("click", () => pick(label));
      part("classes").append(button);
    });
  }
}

function controls(said) {
  document.title = `tvmatch: ${said.name}`;
  part("name").textContent = said.name;
  page.label = said.class_names.length ? 0 : -1;
  part("classes").hidden = said.class_names.length === 0;
  classButtons(said.class_names);
  const [low, high] = said.w_range || [said.w, said.w];
  part("w-field").hidden = said.w_range === null;
  Object.assign(part("w"), { min: low, max: high });
  part("w").value = said.w;
  part("w").addEventListener("input", draw);
  choices(part("calls"), CALLS, said.calls);
  choices(part("pictures"), PICTURES, 16);
  part("seed").addEventListener("change", draw);
  part("new-noise").addEventListener("click", () => {
    part("seed").value = crypto.getRandomValues(new Uint32Array(1))[0];
    draw();
  });
}

/** What the controls ask for. A seed that is no whole number from 0 to 2^32 - 1 is said, and not drawn. */
function asked() {
  const seed = part("seed").value.trim() === "" ? NaN : Number(part("seed").value);
  if (!Number.isInteger(seed) || seed < 0 || seed > 0xffffffff)
    throw new Error("The seed must be a whole number from 0 to 4294967295.");
  const w = page.said.w_range ? Number(part("w").value) : page.said.w;
  return { label: page.label, w, seed, calls: Number(part("calls").value), count: Number(part("pictures").value) };
}

function show(values, count, [channels, height, width]) {
  const columns = Math.ceil(Math.sqrt(count));
  const canvas = part("sheet");
  canvas.width = columns * (width + MARGIN) - MARGIN;
  canvas.height = Math.ceil(count / columns) * (height + MARGIN) - MARGIN;
  const context = canvas.getContext("2d");
  for (let i = 0; i < count; i++) {
    const image = context.createImageData(width, height);
    for (let pixel = 0; pixel < height * width; pixel++) {
      for (let channel = 0; channel < 3; channel++) {
        const from = (i * channels + (channels === 3 ? channel : 0)) * height * width + pixel;
        image.data[4 * pixel + channel] = Math.round(127.5 * (values[from] + 1)); // kept in 0 to 255 by the array
      }
      image.data[4 * pixel + 3] = 255;
    }
    context.putImageData(image, (i % columns) * (width + MARGIN), Math.floor(i / columns) * (height + MARGIN));
  }
}

/** Draw what the controls say; what changes meanwhile is drawn next, and what lies between is left out. */
async function draw() {
  page.again = true;
  if (page.busy || !page.session) return;
  page.busy = true;
  try {
    while (page.again) {
      page.again = false;
      const { label, w, seed, calls, count } = asked();
      const shape = page.said.data_shape;
      const size = shape.reduce((a, b) => a * b);
      const noise = new Float32Array(count * size);
      for (let i = 0; i < count; i++) noise.set(normalNoise(seed, i, size), i * size);
      const began = performance.now();
      const values = await generate(page.session, noise, count, shape, label, w, calls);
      const milliseconds = performance.now() - began;
      show(values, count, shape);
      const what = `${count} ${count === 1 ? "picture" : "pictures"}`;
      const name = page.said.class_names[label];
      part("w-shown").textContent = w.toFixed(2);
      part("sheet").setAttribute("aria-label", `${what}${name === undefined ? "" : ` of class ${name}`}`);
      part("time").textContent = `${what} in ${milliseconds.toFixed(1)} ms, ${calls} network ${calls === 1 ? "call" : "calls"}`;
      page.last = { label, w, seed, calls, count, milliseconds };
    }
  } catch (error) {
    part("time").textContent = error.message || String(error);
  } finally {
    page.busy = false;
  }
}

async function start() {
  if (location.protocol === "file:")
    throw new Error("browsers read no models from files. Serve the folder: python -m http.server --directory FOLDER");
  if (typeof ort === "undefined") throw new Error("runtime/ort.js is missing.");
  const began = performance.now();
  const answer = await fetch("model.json");
  if (!answer.ok) throw new Error(`model.json: the server answers ${answer.status}`);
  page.said = await answer.json();
  controls(page.said);
  page.session = await openGenerator(page.said, (share) => (part("progress").value = share));
  await draw(); // the first call prepares what later ones find ready
  await draw();
  part("progress").hidden = true;
  part("status").textContent = `Ready after ${((performance.now() - began) / 1000).toFixed(1)} s.`;
  part("controls").hidden = part("sheet").hidden = false;
}

start().catch(fail);
