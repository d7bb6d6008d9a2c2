"use strict";
// Sorts the table, orders, filters and plays the items, moves the dots. Draws nothing anew.
(() => {
  const MISSING_LAST = Infinity;
  const data = JSON.parse(document.getElementById("data").textContent);
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  document.documentElement.classList.add("js");

  // ---- table: a click on a heading sorts every block of rows by itself, best first ----
  function sortBy(heading) {
    const place = all("th[data-column]", heading.parentElement).indexOf(heading);
    const best = heading.dataset.better === "higher" ? "descending" : "ascending";
    const worst = best === "descending" ? "ascending" : "descending";
    const order = heading.getAttribute("aria-sort") === best ? worst : best;
    all("[aria-sort]").forEach((other) => other.removeAttribute("aria-sort"));
    heading.setAttribute("aria-sort", order);
    const sign = order === "ascending" ? 1 : -1;
    const key = (row) => {
      const value = row.querySelectorAll("td")[place].dataset.value;
      return value === undefined ? MISSING_LAST : sign * Number(value);
    };
    for (const body of all("tbody", heading.closest("table"))) {
      const rows = all("tr:not(.divider)", body);
      rows.sort((a, b) => compare(key(a), key(b))).forEach((row) => body.append(row));
    }
  }
  const compare = (a, b) => (a === b ? 0 : a < b ? -1 : 1); // also of infinities
  all("th[data-column] .sort").forEach((button) =>
    button.addEventListener("click", () => sortBy(button.closest("th"))));

  const form = document.getElementById("tools");
  if (!form) return;
  const fields = form.elements;
  const container = document.getElementById("items");
  const sections = all(".item", container).sort((a, b) => a.dataset.item - b.dataset.item);

  // ---- what is chosen ----
  const chosen = () => ({
    column: Number(fields.column.value || 0),
    subject: Number(fields.subject.value),
    rival: fields.rival.value === "" ? null : Number(fields.rival.value),
  });
  const mean = (system, column, item) => data.means[system][column]?.[item] ?? null;

  /** Subject - rival; the subject's own without a rival; null where one has no value. */
  function gap(choice, item) {
    const ours = mean(choice.subject, choice.column, item);
    if (choice.rival === null || ours === null) return ours;
    const theirs = mean(choice.rival, choice.column, item);
    return theirs === null ? null : ours - theirs;
  }

  function text(value, digits, signed = false) {
    const shown = value.toFixed(digits).replace("-", "\u2212");
    return signed && value >= 0 ? `+${shown}` : shown;
  }

  // ---- order and filters ----
  function order(choice) {
    const way = fields.order.value;
    const better = data.columns[choice.column]?.better === "lower" ? -1 : 1;
    const sign = way.startsWith("-") ? -1 : 1;
    const key = (item) => {
      if (way === "suite") return item;
      const value = way.endsWith("gap")
        ? gap(choice, item) : mean(choice.subject, choice.column, item);
      return value === null ? MISSING_LAST : sign * better * value;
    };
    const keys = sections.map((_, item) => key(item));
    return keys.map((_, item) => item).sort((a, b) => compare(keys[a], keys[b]) || a - b);
  }

  function wanted(item) {
    const [, prompt, kind] = data.items[item];
    const words = fields.text.value.trim().toLowerCase();
    return (!words || prompt.toLowerCase().includes(words)) &&
      (!fields.kind.value || kind === fields.kind.value) &&
      (!fields.embedded.checked || !sections[item].classList.contains("lean"));
  }

  function showFigure(figure, choice, item, systems) {
    const system = Number(figure.dataset.system);
    figure.hidden = !systems.has(system);
    const videos = all("video", figure);
    const seen = videos.find((v) => v.dataset.sample === fields.sample?.value) ?? videos[0];
    videos.forEach((video) => { video.hidden = video !== seen; });
    const samples = data.shots[data.items[item][0]]?.[system];
    const value = seen && samples
      ? samples[seen.dataset.sample]?.[choice.column] ?? null
      : mean(system, choice.column, item);
    figure.querySelector(".value").textContent =
      value === null ? "" : text(value, data.columns[choice.column].digits);
  }

  function showGap(section, choice, item) {
    const column = data.columns[choice.column], value = gap(choice, item);
    const names = [choice.subject, choice.rival].filter((s) => s !== null);
    const who = names.map((s) => data.systems[s]).join(" \u2212 ");
    section.querySelector(".gap").textContent = value === null ? ""
      : `${column.name}, ${who}: ${text(value, column.digits, choice.rival !== null)}`;
  }

  function update() {
    const choice = chosen();
    const systems = new Set(all("[name=system]:checked", form).map((box) => Number(box.value)));
    for (const item of order(choice)) container.append(sections[item]);
    let shown = 0, whole = 0;
    sections.forEach((section, item) => {
      section.hidden = !wanted(item);
      if (!section.hidden) shown += 1;
      if (!section.hidden && !section.classList.contains("lean")) whole += 1;
      showGap(section, choice, item);
      all(".shot", section).forEach((figure) => showFigure(figure, choice, item, systems));
    });
    document.getElementById("count").textContent =
      `${shown} of ${sections.length} items, ${whole} with videos`;
    if (data.columns.length) moveDots(choice);
    players.forEach((player) => player.refresh());
  }

  // ---- dots ----
  const frame = data.frame;

  /** Ends of an axis; `padded` in drawing.py has the same rule. */
  function padded(values) {
    const low = values.length ? Math.min(...values) : 0;
    const high = values.length ? Math.max(...values) : 1;
    const margin = 0.03 * (high - low) || 0.03 * Math.abs(high) || 1;
    const first = low - margin, last = high + margin, gaps = frame.ticks - 1;
    const power = 10 ** Math.floor(Math.log10((last - first) / gaps));
    for (const size of frame.steps) {
      const step = power * size, start = Math.floor(first / step) * step;
      if (start + gaps * step >= last) return [start, start + gaps * step];
    }
  }
  const along = ([low, high], value, start, stop) =>
    start + ((value - low) / (high - low)) * (stop - start);
  const right = (ends, value, width) => along(ends, value, frame.left, width - frame.right);
  const up = (ends, value) => along(ends, value, frame.size - frame.bottom, frame.top);

  function setTicks(svg, which, [low, high]) {
    const ticks = all(`.tick.${which}`, svg), step = (high - low) / (ticks.length - 1);
    const digits = Math.max(0, 1 - Math.floor(Math.log10(step)));
    ticks.forEach((tick, i) => { tick.textContent = text(low + i * step, digits); });
  }

  function place(svg, spots) {
    for (const dot of all(".dot", svg)) {
      const spot = spots.get(Number(dot.dataset.item));
      dot.classList.toggle("absent", !spot);
      dot.classList.toggle("faded", sections[dot.dataset.item].hidden);
      if (spot) dot.style.transform = `translate(${spot[0]}px, ${spot[1]}px)`;
    }
  }

  function moveDots(choice) {
    const items = sections.map((_, item) => item).filter((item) => gap(choice, item) !== null);
    const name = data.systems[choice.subject];
    const scatter = document.getElementById("scatter");
    scatter.hidden = choice.rival === null;
    if (choice.rival !== null) {
      const pair = (item) =>
        [choice.rival, choice.subject].map((s) => mean(s, choice.column, item));
      const ends = padded(items.flatMap(pair));
      setTicks(scatter, "x", ends);
      setTicks(scatter, "y", ends);
      scatter.querySelector(".name.x").textContent = data.systems[choice.rival];
      scatter.querySelector(".name.y").textContent = name;
      place(scatter, new Map(items.map((item) => {
        const [x, y] = pair(item);
        return [item, [right(ends, x, frame.size), up(ends, y)]];
      })));
    }
    const strip = document.getElementById("strip");
    const gaps = items.map((item) => gap(choice, item));
    const ends = padded(choice.rival === null ? gaps : [...gaps, 0]);
    const sorted = [...items].sort((a, b) => gap(choice, a) - gap(choice, b));
    setTicks(strip, "y", ends);
    strip.querySelector(".name.y").textContent = choice.rival === null ? name : "difference";
    const zero = strip.querySelector(".zero"), y = up(ends, 0);
    zero.style.display = ends[0] <= 0 && ends[1] >= 0 ? "" : "none";
    zero.setAttribute("y1", y);
    zero.setAttribute("y2", y);
    place(strip, new Map(sorted.map((item, rank) =>
      [item, [right([0, sorted.length], rank + 0.5, frame.wide), up(ends, gap(choice, item))]])));
  }

  // ---- the tip of a dot ----
  const tip = document.getElementById("tip");
  function showTip(dot) {
    const item = Number(dot.dataset.item), choice = chosen();
    const column = data.columns[choice.column], [index, prompt] = data.items[item];
    const lines = [choice.subject, choice.rival].filter((s) => s !== null)
      .map((s) => `${data.systems[s]}: ${text(mean(s, choice.column, item), column.digits)}`);
    tip.textContent = [`#${index} ${prompt}`, column.name, ...lines].join("\n");
    tip.hidden = false;
    const box = dot.getBoundingClientRect(), size = tip.getBoundingClientRect();
    const left = Math.min(box.left + 14, innerWidth - size.width - 8);
    const top = box.top - size.height - 8;
    tip.style.left = `${Math.max(8, left)}px`;
    tip.style.top = `${top < 8 ? box.bottom + 8 : top}px`;
  }
  const hideTip = () => { tip.hidden = true; };

  /** So that a link to an item that is filtered away shows it all the same. */
  function reveal(item) {
    if (!sections[item].hidden) return;
    fields.text.value = fields.kind.value = "";
    fields.embedded.checked = false;
    update();
  }

  for (const svg of all("svg.dots")) {
    svg.setAttribute("role", "group");
    svg.setAttribute("tabindex", "0");
    svg.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (!step) return;
      event.preventDefault();
      const x = (dot) => dot.getBoundingClientRect().x;
      const dots = all(".dot:not(.absent)", svg).sort((a, b) => x(a) - x(b));
      const now = dots.indexOf(document.activeElement);
      dots.at(now < 0 ? 0 : (now + step) % dots.length)?.focus({ preventScroll: true });
    });
    for (const dot of all(".dot", svg)) {
      dot.setAttribute("aria-label", dot.querySelector("title").textContent);
      dot.querySelector("title").remove(); // or it would be shown beside the tip
      dot.addEventListener("pointerenter", () => showTip(dot));
      dot.addEventListener("pointerleave", hideTip);
      dot.addEventListener("focus", () => showTip(dot));
      dot.addEventListener("blur", hideTip);
      dot.addEventListener("click", () => reveal(Number(dot.dataset.item)));
    }
  }

  // ---- videos: those of an item start together, and again when the last has ended ----
  class Player {
    constructor(section) {
      this.section = section;
      this.button = section.querySelector(".play");
      this.held = this.inView = this.hovered = false;
      this.turn = 0; // a start that waits for its videos is void when another turn has come
      this.running = [];
      for (const video of all("video", section)) {
        video.controls = video.loop = false;
        video.addEventListener("ended", () => {
          if (this.running.every((other) => other.ended)) this.run();
        });
      }
      this.button.addEventListener("click", () => {
        this.held = !this.held;
        this.button.setAttribute("aria-pressed", this.held);
        this.refresh();
      });
      section.addEventListener("pointerenter", (event) => {
        this.hovered = event.pointerType === "mouse" && !calm.matches;
        this.refresh();
      });
      section.addEventListener("pointerleave", () => { this.hovered = false; this.refresh(); });
    }

    refresh() {
      const on = (this.held || this.hovered || (together && this.inView)) && !this.section.hidden;
      const seen = on ? all(".shot:not([hidden]) video:not([hidden])", this.section) : [];
      if (seen.length === this.running.length && seen.every((v, i) => v === this.running[i])) return;
      this.running.forEach((video) => video.pause());
      this.running = seen;
      this.turn += 1;
      if (seen.length) this.start(this.turn);
    }

    async start(turn) {
      await Promise.all(this.running.map((video) => new Promise((done) => {
        if (video.readyState >= 3) return done();
        video.addEventListener("canplay", done, { once: true });
        video.addEventListener("error", done, { once: true });
        video.preload = "auto";
        video.load();
      })));
      if (turn === this.turn) this.run();
    }

    run() {
      for (const video of this.running) {
        video.currentTime = 0;
        video.play().catch(() => {}); // paused again before it began
      }
    }
  }
  const calm = matchMedia("(prefers-reduced-motion: reduce)");
  let together = false;
  const players = new Map(all(".item:not(.lean)", container).map((s) => [s, new Player(s)]));
  const watch = new IntersectionObserver((entries) => entries.forEach((entry) => {
    const player = players.get(entry.target);
    player.inView = entry.isIntersecting;
    player.refresh();
  }), { threshold: 0.2 });
  players.forEach((_, section) => watch.observe(section));
  const playAll = document.getElementById("play-all");
  playAll.addEventListener("click", () => {
    together = !together;
    playAll.setAttribute("aria-pressed", together);
    players.forEach((player) => player.refresh());
  });

  form.addEventListener("input", update);
  form.addEventListener("submit", (event) => event.preventDefault());
  update();
})();
