// The timeline: frames, the latent frames they go into, and a block for each condition. A block is
// moved with the mouse or the arrow keys and removed with Delete; the page's table is told, and
// answers with a new value. Runs inside gr.HTML, which hands in element, props, trigger and watch.

const KEY_PAUSE = 250; // ms without an arrow key until the table is told
let focused = null; // row of the block that the keys are for
let pause = null;

function make(parent, kind, style, text) {
  const node = document.createElement("div");
  node.className = kind;
  Object.assign(node.style, style || {});
  if (text !== undefined) node.textContent = text; // names of files are text, never markup
  parent.appendChild(node);
  return node;
}

function place(node, first, last, total) {
  node.style.left = `${(100 * (first + last + 1)) / (2 * total)}%`;
  node.style.width = `max(${(100 * (last - first + 1)) / total}%, 52px)`;
}

function clamped(block, first, total) {
  return Math.max(0, Math.min(total - 1 - (block.last - block.first), first));
}

function follow(node, mark, block, total) {
  // Show a block where it is being moved to, before the table knows.
  const last = block.now + block.last - block.first;
  place(node, block.now, last, total);
  mark.style.left = `${(100 * block.now) / total}%`;
  node.querySelector(".place").textContent = block.now === last ? block.now : `${block.now}–${last}`;
}

function movable(node, mark, track, block, total) {
  block.now = block.first;
  const tell = () => {
    if (block.now !== block.first) trigger("move", { row: block.row, frame: block.now });
  };
  node.addEventListener("pointerdown", (down) => {
    node.focus();
    node.setPointerCapture(down.pointerId);
    node.classList.add("dragged");
    const from = block.now;
    const frame = track.getBoundingClientRect().width / total;
    const move = (event) => {
      block.now = clamped(block, from + Math.round((event.clientX - down.clientX) / frame), total);
      follow(node, mark, block, total);
    };
    node.addEventListener("pointermove", move);
    node.addEventListener("lostpointercapture", () => {
      node.removeEventListener("pointermove", move);
      node.classList.remove("dragged");
      tell();
    }, { once: true });
    down.preventDefault();
  });
  node.addEventListener("keydown", (event) => {
    const to = { ArrowLeft: block.now - 1, ArrowRight: block.now + 1, Home: 0, End: total - 1 };
    if (event.key === "Delete") {
      trigger("remove", { row: block.row });
    } else if (event.key in to) {
      block.now = clamped(block, to[event.key], total);
      follow(node, mark, block, total);
      clearTimeout(pause);
      pause = setTimeout(tell, KEY_PAUSE);
    } else {
      return;
    }
    event.preventDefault();
  });
  node.addEventListener("focus", () => { focused = block.row; });
  node.addEventListener("blur", (event) => { if (event.relatedTarget) focused = null; });
}

function draw() {
  const value = props.value || {};
  const total = value.num_frames;
  const root = element.querySelector(".timeline");
  root.replaceChildren();
  if (!total) return;
  const track = make(root, "track");
  value.groups.forEach(([first, last], i) => {
    const group = make(track, `group ${i % 2 ? "odd" : ""}`, {
      left: `${(100 * first) / total}%`, width: `${(100 * (last - first + 1)) / total}%`,
    });
    group.title = `latent frame ${i}: frames ${first}–${last}`;
    // As many numbers as there is room for; each latent frame's own where they are few.
    if (i % Math.ceil(value.groups.length / 24) === 0) {
      make(group, "latent", {}, i);
      make(group, "pixel", {}, first === last ? first : `${first}–${last}`);
    }
  });
  for (const block of value.blocks) {
    const left = `${(100 * block.first) / total}%`;
    const width = `${(100 * (block.last - block.first + 1)) / total}%`;
    const mark = make(track, "mark", { left, width });
    const node = make(track, `block ${block.file ? "" : "missing"}`);
    node.tabIndex = 0;
    node.dataset.row = block.row;
    node.setAttribute("role", "slider");
    node.setAttribute("aria-label", `${block.file || "missing image"}, its first frame`);
    node.setAttribute("aria-valuenow", block.first);
    node.title = `${block.file || "upload an image or clip"} · noise multipliers ${block.multipliers}`;
    make(node, "picture", block.picture ? { backgroundImage: `url("${block.picture}")` } : {},
      block.picture ? "" : block.file ? "clip" : "?");
    make(node, "noise", {}, block.multipliers);
    make(node, "place", {}, block.first === block.last ? block.first : `${block.first}–${block.last}`);
    place(node, block.first, block.last, total);
    movable(node, mark, track, block, total);
    if (block.row === focused) node.focus({ preventScroll: true });
  }
}

watch("value", draw);
draw();
