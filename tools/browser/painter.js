// An image to mark one object on. gradio gives `element`, `props`, `trigger` and `watch`.
// The server sets props.value to {shot, image, ink, color}, two data URLs, a number and a CSS colour, or to null.
// After a stroke props.value is {shot, ink}: a PNG of the image's size, opaque where the object is; after a click that
// the server answers with another mask it is {shot, x, y, add}, x and y from 0 to 1.
const canvas = element.querySelector("canvas"), view = canvas.getContext("2d");
const layer = document.createElement("canvas"), ink = layer.getContext("2d");
const [size, zoom] = element.querySelectorAll("input"), buttons = element.querySelectorAll("button");
const HEIGHT = 440, STEP = 0.02;
const KEYS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1], Enter: [0, 0] };
let shot = null, image = new Image(), color = "", tool = "brush", path = [], here = null, is_waiting = false;

const scale = () => canvas.width / canvas.getBoundingClientRect().width;
const point = (event) => [event.offsetX * scale(), event.offsetY * scale()];
// The slider is in hundredths of a quarter of the image's longer side.
const radius = () => Math.max(0.5, size.value / 100 * Math.max(canvas.width, canvas.height) / 8);
const is_brush = () => tool === "brush" || tool === "eraser";
const is_click = () => tool === "add" || tool === "take";

function outline() {
  const shape = new Path2D(), [first, last] = [path[0], path.at(-1)];
  if (tool === "box") shape.rect(...first, last[0] - first[0], last[1] - first[1]);
  else for (const each of [first, ...path, ...(tool === "polygon" ? [here] : [])]) shape.lineTo(...each);
  return shape;
}

function draw() {
  view.clearRect(0, 0, canvas.width, canvas.height);
  view.drawImage(image, 0, 0, canvas.width, canvas.height);
  view.save();
  view.globalAlpha = 0.6;
  [view.shadowColor, view.shadowBlur] = ["white", Math.max(3, canvas.width / 100)];  // an outline on any ground
  view.drawImage(layer, 0, 0);
  view.restore();
  view.lineWidth = Math.max(1, canvas.width / 400);
  view.strokeStyle = tool === "eraser" || tool === "take" ? "#ffffff" : color;
  const pointer = new Path2D();
  if (here) pointer.arc(...here, is_brush() ? radius() : 3 * view.lineWidth, 0, 2 * Math.PI);
  view.stroke(path.length && !is_brush() ? outline() : pointer);
}

function apply() {
  ink.globalCompositeOperation = tool === "eraser" ? "destination-out" : "source-over";
  [ink.strokeStyle, ink.fillStyle, ink.lineCap, ink.lineWidth] = [color, color, "round", 2 * radius()];
  if (is_brush()) ink.stroke(outline());
  else ink.fill(outline());
}

function press(place) {
  if (is_waiting) return;
  path = tool === "polygon" ? [...path, place] : [place];
  move(place);
}

function move(place) {
  here = place;
  if (path.length && tool !== "polygon" && !is_click()) path = is_brush() ? [path.at(-1), here] : [...path, here];
  if (path.length && is_brush()) apply();
  draw();
}

// A polygon is closed by a corner near its first or former one: by a click there, a double click, or Enter.
function is_open() {
  const near = ([x, y]) => Math.hypot(x - here[0], y - here[1]) < canvas.width / 40 / zoom.value;
  return tool === "polygon" && !(path.length > 1 && (near(path[0]) || near(path.at(-2))));
}

function release() {
  if (!path.length || is_open()) return;
  const [x, y] = [path[0][0] / canvas.width, path[0][1] / canvas.height];
  is_waiting = is_click();
  if (!is_waiting && !is_brush()) apply();
  path = [];
  canvas.style.cursor = is_waiting ? "progress" : "";
  draw();
  props.value = is_waiting ? { shot, x, y, add: tool === "add" } : { shot, ink: layer.toDataURL("image/png") };
  trigger(is_waiting ? "submit" : "input");
}

function choose(name) {
  [tool, path] = [name, []];
  for (const button of buttons) button.setAttribute("aria-pressed", button.dataset.tool === name);
  draw();
}

const fit = () => {
  canvas.style.width = `calc(${zoom.value} * min(100%, ${HEIGHT * canvas.width / canvas.height}px))`;
};
for (const button of buttons) button.addEventListener("click", () => choose(button.dataset.tool));
zoom.addEventListener("input", fit);
canvas.addEventListener("pointerdown", (event) => {
  if (event.button) return;
  canvas.setPointerCapture(event.pointerId);
  press(point(event));
});
canvas.addEventListener("pointermove", (event) => move(point(event)));
for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, release);
canvas.addEventListener("pointerleave", () => { if (!path.length) { here = null; draw(); } });
canvas.addEventListener("keydown", (event) => {
  if (!(event.key in KEYS)) return;
  event.preventDefault();
  const [from_x, from_y] = here ?? [canvas.width / 2, canvas.height / 2], [x, y] = KEYS[event.key];
  move([from_x + x * STEP * canvas.width, from_y + y * STEP * canvas.width]);
  if (event.key === "Enter") { press(here); release(); }
});

const load = async (url) => { const loaded = new Image(); loaded.src = url; await loaded.decode(); return loaded; };

async function show() {
  const value = props.value;
  if (!value) canvas.dataset.shot = "";  // which hides it
  if (!value?.image) return;  // a stroke or click of this page
  const [shown, known] = await Promise.all([load(value.image), load(value.ink)]);
  if (props.value !== value && props.value?.shot !== value.shot) return;  // another one came in the meantime
  [shot, image, color] = [value.shot, shown, value.color];
  [canvas.width, canvas.height] = [layer.width, layer.height] = [known.width, known.height];
  ink.drawImage(known, 0, 0);
  fit();
  [path, is_waiting, canvas.style.cursor, canvas.dataset.shot] = [[], false, "", shot];
  draw();
}

watch("value", show);
choose("brush");
show();
