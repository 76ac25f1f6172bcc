"use strict";
// Draws the map, the neighbors and the gallery of a report from the JSON in the page. Paths and labels are inserted as text, never as HTML.

const data = JSON.parse(document.getElementById("data").textContent);
const COLORS = 8; // further labels share one color
const FIRST = 72; // images in the gallery before "show all"
const PICTURE = 46; // side of a picture on the map
const SHAPES = [ // one per color, so that labels are distinguishable without colors
  "M7,0A7,7 0 1 1 -7,0A7,7 0 1 1 7,0Z", "M-6,-6H6V6H-6Z", "M0,-8L8,6H-8Z", "M0,-8.5L8.5,0L0,8.5L-8.5,0Z", "M0,8L-8,-6H8Z",
  "M-2.6,-7.5H2.6V-2.6H7.5V2.6H2.6V7.5H-2.6V2.6H-7.5V-2.6H-2.6Z", "M-4,-7H4L8,0L4,7H-4L-8,0Z",
  "M0,-8.5L2.3,-3L8.2,-2.6L3.7,1.2L5.1,7L0,3.8L-5.1,7L-3.7,1.2L-8.2,-2.6L-2.3,-3Z", "M5,0A5,5 0 1 1 -5,0A5,5 0 1 1 5,0Z",
];

const byId = (id) => document.getElementById(id);
const colorOf = (item) => (item.label === null ? (data.labels.length ? COLORS : 0) : Math.min(item.label, COLORS));
const labelOf = (item) => (item.label === null ? "" : data.labels[item.label]);

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function picture(item, alt = "") {
  if (item.picture) return element("img", { class: "picture", src: item.picture, alt });
  return element("span", { class: "picture gone" }, item.path.split("/").pop());
}

// The map

const plot = byId("plot");
const hint = byId("panel")?.firstElementChild;
const points = [];
let current = 0; // the point that Tab focuses
let selected = null;
let asPictures = false;

function vector(name, attributes = {}) {
  const made = document.createElementNS(plot.namespaceURI, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

function drawPoints() {
  for (let index = 0; index < data.shown; index++) {
    const item = data.items[index];
    const [x, y] = data.points[index];
    const color = colorOf(item);
    const name = [item.path, labelOf(item)].filter(Boolean).join(", ");
    const point = vector("g", { class: `point c${color}`, transform: `translate(${x} ${y})`, tabindex: -1, role: "button", "aria-label": name, "data-index": index });
    point.append(...symbol(index));
    points.push(point);
  }
  byId("points").append(...points);
  points[current].setAttribute("tabindex", 0);
}

// The symbol of a point: a shape in the color of its label, or the picture
function symbol(index) {
  const item = data.items[index];
  if (!asPictures || !item.picture) return [vector("path", { d: SHAPES[colorOf(item)] })];
  const frame = { x: -PICTURE / 2, y: -PICTURE / 2, width: PICTURE, height: PICTURE };
  return [vector("image", { ...frame, href: item.picture, preserveAspectRatio: "xMidYMid slice" }), vector("rect", frame)];
}

function showAsPictures(wanted) {
  asPictures = wanted;
  points.forEach((point, index) => point.replaceChildren(...symbol(index)));
  mark();
}

function indexOf(target) {
  const point = target instanceof Element && target.closest(".point");
  return point ? Number(point.dataset.index) : null;
}

function makeCurrent(index) {
  points[current].setAttribute("tabindex", -1);
  current = index;
  points[current].setAttribute("tabindex", 0);
}

// The nearest point in the direction of an arrow key; sideways distance counts three times
function towards(index, [right, down]) {
  const [x, y] = data.points[index];
  let best = null, least = Infinity;
  data.points.forEach(([otherX, otherY], other) => {
    const along = (otherX - x) * right + (otherY - y) * down;
    const aside = Math.abs((otherX - x) * down) + Math.abs((otherY - y) * right);
    if (other !== index && along > 0 && along + 3 * aside < least) [best, least] = [other, along + 3 * aside];
  });
  return best;
}

function showTip(index) {
  const tip = byId("tip"), item = data.items[index];
  tip.replaceChildren();
  if (item.picture) tip.append(element("img", { src: item.picture, alt: "" }));
  tip.append(item.path);
  if (labelOf(item)) tip.append(element("small", {}, labelOf(item)));
  tip.hidden = false;
  const card = byId("plot-card").getBoundingClientRect(), spot = points[index].getBoundingClientRect();
  const x = spot.left + spot.width / 2 - card.left, y = spot.top - card.top;
  const left = Math.min(Math.max(x - tip.offsetWidth / 2, 6), card.width - tip.offsetWidth - 6);
  const above = y - tip.offsetHeight - 10;
  tip.style.left = `${left}px`;
  tip.style.top = `${above > 6 ? above : y + spot.height + 10}px`;
}

function hideTip() {
  byId("tip").hidden = true;
}

// The neighbors

function neighbor([other, cosine]) {
  const item = data.items[other];
  const fill = element("i");
  fill.style.width = `${Math.max(cosine, 0) * 100}%`;
  const text = element("span", {}, element("b", {}, cosine.toFixed(3)), element("span", { class: "bar" }, fill), element("em", {}, item.path));
  const onMap = other < data.shown;
  const row = element(onMap ? "button" : "div", { class: "neighbor", "data-index": other, title: item.path }, picture(item), text);
  if (onMap) {
    row.type = "button";
    row.addEventListener("click", () => {
      select(other);
      byId("panel").querySelector("button.neighbor")?.focus();
    });
  }
  return element("li", {}, row);
}

// Draws the selected image and its neighbors in front of all others, with lines between them
function mark() {
  byId("marks").replaceChildren();
  if (selected === null) return;
  const near = data.neighbors[selected].map(([other]) => other).filter((other) => other < data.shown);
  const [x1, y1] = data.points[selected];
  for (const [x2, y2] of near.map((other) => data.points[other])) byId("marks").append(vector("line", { x1, y1, x2, y2 }));
  for (const index of [...near.reverse(), selected]) {
    const [x, y] = data.points[index];
    const front = vector("g", { class: `c${colorOf(data.items[index])}`, transform: `translate(${x} ${y})` });
    front.append(...symbol(index));
    if (index === selected) front.classList.add("selected");
    if (index === selected && !asPictures) front.append(vector("circle", { r: 15 }));
    byId("marks").append(front);
  }
}

function select(index) {
  document.querySelector('.gallery [aria-current="true"]')?.removeAttribute("aria-current");
  selected = index;
  mark();
  history.replaceState(null, "", index === null ? "#map" : `#image-${index}`);
  if (index === null) {
    byId("panel").replaceChildren(hint);
    return;
  }
  const item = data.items[index];
  makeCurrent(index);
  byId("gallery").children[index]?.setAttribute("aria-current", "true");
  const chosen = element("div", { class: "chosen" }, picture(item), element("div", {}, item.path, element("small", {}, labelOf(item))));
  const nearest = element("ol", { "aria-label": "Nearest neighbors with cosines" }, ...data.neighbors[index].map(neighbor));
  byId("panel").replaceChildren(chosen, nearest);
}

// The gallery

function drawGallery(number) {
  const gallery = byId("gallery");
  for (let index = gallery.children.length; index < number; index++) {
    const item = data.items[index];
    if (!plot) {
      const shown = picture(item, item.path);
      shown.title = item.path;
      gallery.append(shown);
      continue;
    }
    const button = element("button", { type: "button", title: item.path, "aria-label": item.path }, picture(item));
    if (index === selected) button.setAttribute("aria-current", "true");
    button.addEventListener("click", () => {
      select(index);
      byId("map").scrollIntoView();
      points[index].focus({ preventScroll: true });
    });
    gallery.append(button);
  }
  byId("more").hidden = number >= data.shown;
  byId("more").textContent = `show all ${data.shown} images`;
}

drawGallery(Math.min(FIRST, data.shown));
byId("more").addEventListener("click", () => {
  drawGallery(data.shown);
  byId("gallery").children[FIRST].focus();
});

if (plot) {
  const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  drawPoints();
  plot.addEventListener("pointerover", (event) => indexOf(event.target) !== null && showTip(indexOf(event.target)));
  plot.addEventListener("pointerout", hideTip);
  plot.addEventListener("focusin", (event) => indexOf(event.target) !== null && showTip(indexOf(event.target)));
  plot.addEventListener("focusout", hideTip);
  plot.addEventListener("click", (event) => select(indexOf(event.target) ?? selected));
  plot.addEventListener("keydown", (event) => {
    const index = indexOf(event.target);
    if (index === null) return;
    if (event.key === "Enter" || event.key === " ") select(index);
    else if (event.key === "Escape") select(null);
    else if (event.key in ARROWS) {
      const next = towards(index, ARROWS[event.key]);
      if (next !== null) makeCurrent(next);
      points[current].focus();
    } else return;
    event.preventDefault();
  });
  byId("as-pictures").hidden = !data.items.some((item) => item.picture);
  byId("as-pictures").addEventListener("click", (event) => {
    const wanted = event.currentTarget.getAttribute("aria-pressed") !== "true";
    event.currentTarget.setAttribute("aria-pressed", wanted);
    showAsPictures(wanted);
  });
  const chips = [...document.querySelectorAll("#legend [data-color]")];
  for (const chip of chips) {
    chip.querySelector("path").setAttribute("d", SHAPES[chip.dataset.color]);
    chip.addEventListener("click", () => {
      const wanted = chip.getAttribute("aria-pressed") !== "true";
      for (const other of chips) other.setAttribute("aria-pressed", wanted && other === chip);
      for (const point of points) point.classList.toggle("faint", wanted && !point.classList.contains(`c${chip.dataset.color}`));
    });
  }
  const asked = /^#image-(\d+)$/.exec(location.hash);
  if (asked && Number(asked[1]) < data.shown) select(Number(asked[1]));
}
