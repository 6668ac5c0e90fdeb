// An image to paint one object on. gradio gives `element`, `props`, `trigger` and `watch`.
// The server sets props.value to {shot, image, ink, color}, two data URLs, a number and a CSS colour, or to null.
// After every stroke props.value is {shot, ink}: a PNG of the image's size, opaque where the object is.
const canvas = element.querySelector("canvas"), view = canvas.getContext("2d");
const layer = document.createElement("canvas"), ink = layer.getContext("2d", { willReadFrequently: true });
const slider = element.querySelector("input");
const STEPS = 20, HEIGHT = 440;
let shot = null, image = null, color = "#e69f00", tool = "brush", start = null, here = null, last = null, history = [];

const point = (event) => {
  const frame = canvas.getBoundingClientRect();
  return [(event.clientX - frame.left) * canvas.width / frame.width,
          (event.clientY - frame.top) * canvas.height / frame.height];
};
// The slider is in hundredths of a quarter of the image's longer side.
const radius = () => Math.max(0.5, slider.value / 100 * Math.max(canvas.width, canvas.height) / 8);
const box = () => [Math.min(start[0], here[0]), Math.min(start[1], here[1]),
                   Math.abs(start[0] - here[0]), Math.abs(start[1] - here[1])].map(Math.round);

function draw() {
  view.clearRect(0, 0, canvas.width, canvas.height);
  if (!image) {
    view.fillStyle = "#888";
    view.font = "20px sans-serif";
    view.textAlign = "center";
    view.fillText("Drop a support image above, then paint the object here", canvas.width / 2, canvas.height / 2);
    return;
  }
  view.drawImage(image, 0, 0, canvas.width, canvas.height);
  view.save();
  view.globalAlpha = 0.6;
  [view.shadowColor, view.shadowBlur] = ["white", Math.max(3, canvas.width / 100)];  // an outline on any ground
  view.drawImage(layer, 0, 0);
  view.restore();
  view.lineWidth = Math.max(1, canvas.width / 400);
  view.strokeStyle = tool === "eraser" ? "#ffffff" : color;
  if (tool === "box" && start) view.strokeRect(...box());
  if (tool !== "box" && here) {
    view.beginPath();
    view.arc(...here, radius(), 0, 2 * Math.PI);
    view.stroke();
  }
}

function stroke(from, to) {
  ink.globalCompositeOperation = tool === "eraser" ? "destination-out" : "source-over";
  ink.strokeStyle = color;
  ink.lineCap = "round";
  ink.lineWidth = 2 * radius();
  ink.beginPath();
  ink.moveTo(...from);
  ink.lineTo(...to);
  ink.stroke();
  ink.globalCompositeOperation = "source-over";
}

function keep() {
  history.push(ink.getImageData(0, 0, layer.width, layer.height));
  if (history.length > STEPS) history.shift();
}

function hand_over() {
  draw();
  props.value = { shot, ink: layer.toDataURL("image/png") };
  trigger("input");
}

function choose(name) {
  tool = name;
  for (const button of element.querySelectorAll("button")) {
    const chosen = button.dataset.tool === name;
    button.classList.toggle("chosen", chosen);
    button.setAttribute("aria-pressed", chosen);
  }
}

for (const button of element.querySelectorAll("button")) button.addEventListener("click", () => {
  const name = button.dataset.tool;
  if (["brush", "eraser", "box"].includes(name)) return choose(name);
  if (!image || (name === "undo" && !history.length)) return;
  if (name === "undo") ink.putImageData(history.pop(), 0, 0);
  else { keep(); ink.clearRect(0, 0, layer.width, layer.height); }
  hand_over();
});

canvas.addEventListener("pointerdown", (event) => {
  if (!image || event.button) return;
  canvas.setPointerCapture(event.pointerId);
  keep();
  start = last = here = point(event);
  if (tool !== "box") stroke(last, here);
  draw();
});
canvas.addEventListener("pointermove", (event) => {
  here = point(event);
  if (start && tool !== "box") { stroke(last, here); last = here; }
  draw();
});
canvas.addEventListener("pointerup", () => {
  if (!start) return;
  if (tool === "box") { ink.fillStyle = color; ink.fillRect(...box()); }
  start = null;
  hand_over();
});
canvas.addEventListener("pointerleave", () => { if (!start) { here = null; draw(); } });
canvas.addEventListener("pointercancel", () => { start = null; draw(); });

const load = async (url) => { const loaded = new Image(); loaded.src = url; await loaded.decode(); return loaded; };

async function show() {
  const value = props.value;
  if (value && !value.image) return;  // a stroke of this page
  if (!value) { shot = image = null; draw(); return; }
  const [shown, known] = await Promise.all([load(value.image), load(value.ink)]);
  if (props.value !== value && props.value?.shot !== value.shot) return;  // another one came in the meantime
  if (shot !== value.shot) history = [];
  [shot, image, color] = [value.shot, shown, value.color];
  [canvas.width, canvas.height] = [layer.width, layer.height] = [known.width, known.height];
  ink.drawImage(known, 0, 0);
  canvas.style.width = `min(100%, ${HEIGHT * canvas.width / canvas.height}px)`;
  canvas.dataset.shot = shot;
  draw();
}

watch("value", show);
choose("brush");
show();
