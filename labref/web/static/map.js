// The map: a deep-zoom viewer over tiles that the agent draws; nodes by mouse and keyboard; what is drawn.
import { ask, keys, reach, say, text } from "./labref.js";
import { changed, step } from "./map-cells.js";

document.documentElement.classList.add("script");
const place = document.getElementById("map");
const rows = Number(place.dataset.rows);
const columns = Number(place.dataset.columns);
const pyramid = JSON.parse(place.dataset.pyramid);
const says = document.getElementById("map-says");
const panel = document.getElementById("map-cells");
const filter = document.getElementById("map-filter");
const dark = matchMedia("(prefers-color-scheme: dark)");
const OpenSeadragon = window.OpenSeadragon;
let viewer = null;

function source() {
  const base = dark.matches ? place.dataset.dark : place.dataset.light;
  return {
    width: pyramid.width, height: pyramid.height, tileSize: pyramid.tile, tileOverlap: 0,
    minLevel: pyramid.first, maxLevel: pyramid.last,
    getTileUrl: (level, x, y) => `${base}/${level}/${x}_${y}.png`,
  };
}

// places: a node is [row, column]; the viewer's unit is the width of the map

const box = (row, column, lastRow = row, lastColumn = column) =>
  new OpenSeadragon.Rect(column / columns, row / columns, (lastColumn - column + 1) / columns, (lastRow - row + 1) / columns);
const inside = (value, count) => Math.max(0, Math.min(count - 1, value));

function nodeAt(position) {
  const point = viewer.viewport.pointFromPixel(position);
  const [row, column] = [Math.floor(point.y * columns), Math.floor(point.x * columns)];
  return row >= 0 && row < rows && column >= 0 && column < columns ? [row, column] : null;
}

const marks = new Map();

function mark(name, where) {
  let element = marks.get(name);
  if (!where) {
    if (element) viewer.removeOverlay(element);
    marks.delete(name);
    return;
  }
  if (element) return viewer.updateOverlay(element, where);
  element = document.createElement("div");
  element.className = name;
  marks.set(name, element);
  viewer.addOverlay({ element, location: where });
}

// the node that the keyboard is at

let here = null;
let corner = null; // where a region begins
let telling = 0;

async function tell(row, column) {
  const mine = ++telling;
  await new Promise((done) => setTimeout(done, 120));
  if (mine !== telling) return;
  try {
    const [found] = await ask("map.region", { row, column, limit: 0 });
    if (mine !== telling) return;
    const classes = Object.entries(found.by_class).slice(0, 3).map(([label, count]) => `${label} ${count}`);
    says.textContent = `${text("Node {row}, {column}", { row, column })}: ${classes.join(", ") || text("no cell")}`;
  } catch (error) {
    says.textContent = error.message;
  }
}

function goTo(row, column, { centre = false } = {}) {
  here = [inside(row, rows), inside(column, columns)];
  mark("here", box(...here));
  if (corner) showRegion(corner, here);
  const wanted = box(...here);
  const shown = viewer.viewport.getBounds();
  const middle = wanted.getCenter();
  const margin = shown.width * 0.08;
  const out = middle.x < shown.x + margin || middle.x > shown.x + shown.width - margin ||
    middle.y < shown.y + margin || middle.y > shown.y + shown.height - margin;
  if (centre || out) viewer.viewport.panTo(middle).applyConstraints();
  tell(...here);
}

function near(row, column) {
  // so near that single nodes, and their cells, are seen
  viewer.viewport.zoomTo(columns / (viewer.container.clientWidth / 72), null);
  goTo(row, column, { centre: true });
}

function move(event) {
  if (step(event)) return;
  if (!viewer) return;
  const far = event.shiftKey ? 10 : 1;
  const by = { ArrowLeft: [0, -far], ArrowRight: [0, far], ArrowUp: [-far, 0], ArrowDown: [far, 0] }[event.key];
  if (!here) {
    const middle = viewer.viewport.getCenter();
    return goTo(Math.floor(middle.y * columns), Math.floor(middle.x * columns));
  }
  goTo(here[0] + by[0], here[1] + by[1]);
}

function zoom(factor) {
  const about = here ? box(...here).getCenter() : undefined;
  viewer.viewport.zoomBy(factor, about);
  viewer.viewport.applyConstraints();
}

// cells of a node, of a region

const query = () => new URLSearchParams([...new FormData(filter)].filter(([name, value]) => value && name !== "cell" && !(name === "what" && value === "classes")));

/** The page at an address. Raises Error where the agent does not answer. */
async function pageAt(address) {
  const response = await reach(address);
  if (response.redirected) {
    location.reload(); // to sign in
    return new Promise(() => {});
  }
  return new DOMParser().parseFromString(await response.text(), "text/html");
}

/** A part of the page at an address. Raises Error where it is not there. */
async function partOf(address, selector) {
  const shown = await pageAt(address + (address.includes("?") ? "&" : "?") + "part=1");
  const part = shown.querySelector(selector);
  if (!part) throw new Error(shown.querySelector(".problem")?.textContent ?? shown.title);
  return part;
}

/** What waits for the answer asked for last: undefined where another was asked for meanwhile; null where it failed, which
 * is said. */
function newest() {
  let asked = 0;
  return async (answer) => {
    const mine = ++asked;
    try {
      const given = await answer;
      return mine === asked ? given : undefined;
    } catch (error) {
      if (mine !== asked) return undefined;
      say(error.message, { failed: true });
      return null;
    }
  };
}

const newestCells = newest();
const newestMap = newest();
const newestDoubts = newest();

async function open(address) {
  const part = await newestCells(partOf(address, ".region"));
  if (!part) return;
  panel.replaceChildren(part);
  panel.hidden = false;
  panel.dataset.address = address;
  const whole = document.createElement("a");
  whole.href = address;
  whole.textContent = text("on a page of its own");
  const close = document.createElement("button");
  close.type = "button";
  close.className = "quiet";
  close.textContent = "×";
  close.ariaLabel = text("Close");
  close.addEventListener("click", closeCells);
  part.querySelector(".region-head").append(whole, close);
  panel.scrollIntoView({ block: "nearest" });
}

function closeCells() {
  panel.hidden = true;
  panel.replaceChildren();
  if (viewer) mark("chosen", null);
  (viewer ? place : filter).focus();
}

function openNode(row, column) {
  const asked = query();
  mark("chosen", box(row, column));
  return open(`/map/node/${row}/${column}${asked.size ? `?${asked}` : ""}`);
}

const sorted = ([row, column], [otherRow, otherColumn]) =>
  [Math.min(row, otherRow), Math.min(column, otherColumn), Math.max(row, otherRow), Math.max(column, otherColumn)];

function showRegion(one, other) {
  mark("chosen", box(...sorted(one, other)));
}

function openRegion(one, other) {
  showRegion(one, other);
  const asked = query();
  return open(`/map/region/${sorted(one, other).join("/")}${asked.size ? `?${asked}` : ""}`);
}

const regionButton = document.querySelector("[data-region]");

function beginRegion(at) {
  corner = at;
  regionButton.setAttribute("aria-pressed", String(corner !== null || dragging));
  place.classList.toggle("choosing", corner !== null || dragging);
}

let dragging = false; // the next drag selects a region, without Shift
let from = null;

function enter(event) {
  const link = document.activeElement?.closest?.("a, button, summary");
  if (link) return link.click();
  if (!viewer || !here) return;
  if (corner) {
    const first = corner;
    beginRegion(null);
    return openRegion(first, here);
  }
  openNode(...here);
}

// what is drawn

async function redraw(address) {
  const shown = await newestMap(pageAt(address));
  if (!shown) return;
  const other = shown.getElementById("map");
  if (other?.dataset.map !== place.dataset.map) return location.assign(address); // another map, of other nodes
  Object.assign(place.dataset, { light: other.dataset.light, dark: other.dataset.dark });
  for (const id of ["map-count", "map-legend"]) {
    const old = document.getElementById(id);
    const fresh = shown.getElementById(id);
    const focused = old.contains(document.activeElement) && document.activeElement.value;
    old.replaceWith(fresh);
    if (focused) document.querySelector(`#${id} [value="${focused}"]`)?.focus();
  }
  const fresh = shown.getElementById("map-suspects");
  const list = doubts.querySelector("[data-later]");
  const { later } = fresh.querySelector("[data-later]").dataset;
  if (list.dataset.later !== later) {
    list.dataset.later = later;
    list.replaceChildren(); // those of another microscope
  }
  if (fresh.open && !doubts.open) doubts.open = true; // which asks for them
  else showDoubts();
  if (!document.getElementById("map-picture").hidden) {
    const [picture, drawn] = [document, shown].map((one) => one.querySelector("#map-picture picture"));
    picture.querySelector("source").srcset = drawn.querySelector("source").srcset;
    picture.querySelector("img").src = drawn.querySelector("img").getAttribute("src");
  }
  history.replaceState(null, "", address);
  if (viewer) reopen();
}

const doubts = document.getElementById("map-suspects");

/** The suspect labels: asked for once somebody wants them, as that takes seconds in a large lab. */
async function showDoubts() {
  if (!doubts.open) return;
  const list = doubts.querySelector("[data-later]");
  list.ariaBusy = "true";
  const fresh = await newestDoubts(partOf(list.dataset.later, ".suspects"));
  if (fresh === undefined) return;
  list.ariaBusy = null;
  if (!fresh) return;
  const focused = list.contains(document.activeElement) && document.activeElement.closest("[data-cell]")?.dataset.cell;
  list.replaceChildren(fresh);
  if (focused) list.querySelector(`[data-cell="${focused}"] a`)?.focus();
}

function reopen() {
  const shown = viewer.viewport.getBounds(true);
  const old = viewer.world.getItemAt(0);
  viewer.addTiledImage({
    tileSource: source(),
    success: () => {
      if (old) viewer.world.removeItem(old);
      viewer.viewport.fitBounds(shown, true);
    },
  });
}

const asked = () => {
  const all = new URLSearchParams([...new FormData(filter)].filter(([name, value]) => value && !(name === "what" && value === "classes")));
  return `/map${all.size ? `?${all}` : ""}`;
};
filter.addEventListener("change", () => redraw(asked()));
filter.addEventListener("submit", (event) => {
  event.preventDefault();
  redraw(asked());
});
document.addEventListener("click", (event) => {
  if (event.ctrlKey || event.metaKey || event.shiftKey) return;
  const page = event.target.closest("#map-cells .pages a");
  const node = viewer && event.target.closest("a.to-node");
  if (page) {
    event.preventDefault();
    open(page.getAttribute("href"));
  } else if (node) {
    event.preventDefault();
    near(...node.closest("[data-node]").dataset.node.split(",").map(Number));
  }
});

doubts.addEventListener("toggle", showDoubts);
showDoubts();

let waiting = 0;
changed.add(() => {
  clearTimeout(waiting);
  waiting = setTimeout(() => redraw(asked()), 1500);
});

function begin() {
  document.getElementById("map-picture").hidden = true;
  place.hidden = false;
  document.querySelector(".zoom").hidden = false;
  viewer = OpenSeadragon({
    element: place, drawer: "canvas", tileSources: source(), showNavigationControl: false, showNavigator: false,
    animationTime: matchMedia("(prefers-reduced-motion: reduce)").matches ? 0 : 0.6,
    springStiffness: 9, visibilityRatio: 0.9, maxZoomPixelRatio: 2, minZoomImageRatio: 0.8, imageSmoothingEnabled: true,
    gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: true }, gestureSettingsTouch: { clickToZoom: false },
    imageLoaderLimit: 8, maxImageCacheCount: 600, blendTime: 0, tabIndex: "", keyboardNavEnabled: false,
  });
  viewer.innerTracker.keyDownHandler = viewer.innerTracker.keyHandler = null; // its keys are letters, which are classes here
  viewer.addHandler("open-failed", () => {
    place.hidden = true;
    document.getElementById("map-picture").hidden = false;
  });
  viewer.addHandler("open", () => {
    place.dataset.open = "1";
    const spot = place.dataset.spot?.split(",").map(Number);
    if (spot) mark("spot", box(...spot));
    const asked = location.hash.match(/^#(\d+),(\d+)$/);
    if (asked) near(Number(asked[1]), Number(asked[2]));
    else if (spot) near(...spot);
  });
  viewer.addHandler("canvas-click", (event) => {
    if (!event.quick) return;
    event.preventDefaultAction = true;
    const node = nodeAt(event.position);
    place.focus({ preventScroll: true });
    if (!node) return;
    goTo(...node);
    openNode(...node);
  });
  viewer.addHandler("canvas-press", (event) => {
    from = event.originalEvent.shiftKey || dragging ? nodeAt(event.position) : null;
  });
  viewer.addHandler("canvas-drag", (event) => {
    if (!from) return;
    event.preventDefaultAction = true;
    const to = nodeAt(event.position);
    if (to) showRegion(from, to);
  });
  viewer.addHandler("canvas-drag-end", (event) => {
    if (!from) return;
    event.preventDefaultAction = true;
    const to = nodeAt(event.position) ?? here;
    const first = from;
    from = null;
    dragging = false;
    beginRegion(null);
    if (to) openRegion(first, to);
  });
  new OpenSeadragon.MouseTracker({
    element: viewer.canvas, startDisabled: false,
    moveHandler: (event) => {
      const node = nodeAt(event.position);
      if (node) tell(...node);
    },
  });
  dark.addEventListener("change", reopen);
  const arrows = text("Go from node to node; with Shift ten at once");
  keys({
    ArrowLeft: [arrows, move], ArrowRight: [arrows, move], ArrowUp: [arrows, move], ArrowDown: [arrows, move],
    "+": [text("Nearer"), () => zoom(2)], "-": [text("Farther"), () => zoom(0.5)],
    Home: [text("The whole map"), () => viewer.viewport.goHome()],
    Enter: [text("The cells of the node, or of the region"), enter],
    R: [text("Begin a region at the node; go on, then Enter"), () => here && beginRegion(corner ? null : here)],
    X: [text("Close the list of cells"), closeCells],
  });
  if (place.dataset.spot) keys({ C: [text("To the cell"), () => near(...place.dataset.spot.split(",").map(Number))] });
  document.querySelector(".zoom").addEventListener("click", (event) => {
    const what = event.target.closest("[data-zoom]")?.dataset.zoom;
    if (what === "in") zoom(2);
    if (what === "out") zoom(0.5);
    if (what === "all") viewer.viewport.goHome();
    if (what === "cell") near(...place.dataset.spot.split(",").map(Number));
    if (event.target.closest("[data-region]")) {
      dragging = !dragging;
      beginRegion(null);
    }
  });
  document.querySelector(".go-to-node").addEventListener("submit", (event) => {
    event.preventDefault();
    near(Number(event.target.elements.row.value), Number(event.target.elements.column.value));
    place.focus();
  });
}

/** Without the viewer: the picture as large as there is room, and a click leads to the node that it meets. */
function beginPicture() {
  const frame = document.getElementById("map-picture");
  const picture = frame.querySelector("img");
  const fit = () => {
    const side = Math.max(8, Math.floor(Math.min((frame.clientWidth - 4) / columns, (frame.clientHeight - 4) / rows)));
    [picture.width, picture.height] = [side * columns, side * rows];
  };
  frame.querySelector("a").addEventListener("click", (event) => {
    if (event.target !== picture) return;
    event.preventDefault();
    const box = picture.getBoundingClientRect();
    const row = inside(Math.floor((rows * (event.clientY - box.top)) / box.height), rows);
    const column = inside(Math.floor((columns * (event.clientX - box.left)) / box.width), columns);
    const asked = query();
    location.assign(`/map/node/${row}/${column}${asked.size ? `?${asked}` : ""}`);
  });
  addEventListener("resize", fit);
  fit();
}

keys({ D: [text("Suspect labels in red"), () => filter.elements.doubtful.click()] });
if (OpenSeadragon) begin();
else {
  beginPicture();
  keys({ ArrowLeft: [text("From cell to cell"), move], ArrowRight: [text("From cell to cell"), move] });
}
