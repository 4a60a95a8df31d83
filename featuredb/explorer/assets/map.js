// The map of features: WebGL2 where there is, else a 2-D canvas. The address has what is looked at.
"use strict";

const root = document.querySelector(".map");
const plane = root.querySelector("[data-plane]");
const over = root.querySelector("[data-over]");
const controls = root.querySelector("[data-controls]");
const readout = root.querySelector("#readout");
const state = new URLSearchParams(location.search);
const dark = matchMedia("(prefers-color-scheme: dark)").matches;
// Magma, from which neither end is lost on white or on black.
const RAMP = [[59, 15, 112], [140, 41, 129], [222, 73, 104], [254, 159, 109], [252, 253, 191]];
const SHADES = 64;
// Okabe and Ito's, told apart by the color-blind: of a text column's values. The last is all others.
const VALUES = [[0, 114, 178], [230, 159, 0], [0, 158, 115], [213, 94, 0], [86, 180, 233], [204, 121, 167], [240, 228, 66], [136, 136, 136]];
const STOPS = VALUES.length;

// Points of a frame while the map is moved. All are drawn once it rests.
const FAST = 16384;

// ---- points

async function read(url) {
  const reply = await fetch(url);
  if (!reply.ok) throw new Error((await reply.json().catch(() => ({}))).error ?? "The points cannot be read.");
  const data = await reply.arrayBuffer();
  const length = new DataView(data).getUint32(0, true);
  const about = JSON.parse(new TextDecoder().decode(new Uint8Array(data, 4, length)));
  return { data, about, at: 4 + length };
}

async function load(url) {
  let { data, about, at } = await read(url);
  const next = (kind) => {
    const array = new kind(data, at, about.n);
    at += 4 * about.n;
    return array;
  };
  const made = { ...about, x: next(Float32Array), y: next(Float32Array), id: next(Uint32Array), column: {}, values: {} };
  for (const name of about.columns) made.column[name] = next(Float32Array);
  made.label = [], made.words = [];
  for (const line of new TextDecoder().decode(new Uint8Array(data, at)).split("\n")) {
    const [label, ...words] = line.split("\t");
    made.label.push(label), made.words.push(words);
  }
  return made;
}

// A column that is not among the points until it is chosen.
async function more(points, name) {
  const address = points.others.find(([text]) => text === name)?.[1];
  if (!address || Object.hasOwn(points.column, name)) return;
  const { data, about, at } = await read(address);
  if (about.values) points.values[name] = about.values;
  points.column[name] = new Float32Array(data, at, about.n);
}

// The points in an order that is the same each time, of which each beginning is a sample.
function shuffled(n) {
  const order = Uint32Array.from({ length: n }, (_, i) => i);
  let seed = 1;
  for (let i = n - 1; i > 0; i -= 1) {
    seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
    const j = Math.floor((seed / 2 ** 32) * (i + 1));
    [order[i], order[j]] = [order[j], order[i]];
  }
  return order;
}

function shadeAt(ramp, share) {
  const place = Math.min(0.9999, Math.max(0, share)) * (ramp.length - 1);
  const [from, to] = [ramp[Math.floor(place)], ramp[Math.floor(place) + 1]];
  return from.map((low, i) => Math.round(low + (to[i] - low) * (place % 1)));
}

// Shares of 0 to 1 by rank: columns are skewed, and ranks use all colors.
function ranked(values) {
  const known = [...values.keys()].filter((i) => Number.isFinite(values[i]));
  known.sort((a, b) => values[a] - values[b]);
  const shares = new Float32Array(values.length).fill(-1);
  for (let i = 0; i < known.length; ) {
    let end = i;
    while (end < known.length && values[known[end]] === values[known[i]]) end += 1;
    for (; i < end; i += 1) shares[known[i]] = known.length > 1 ? (end - 1) / (known.length - 1) : 1;
  }
  const low = known.length ? values[known[0]] : NaN;
  return { shares, low, high: known.length ? values[known.at(-1)] : NaN };
}

// The colors between which shares are mixed: each value of a text has one that is its own.
const stops = (values) => (values ? VALUES : Array.from({ length: STOPS }, (_, i) => shadeAt(RAMP, i / (STOPS - 1))));
// The place of a text's value among them: the last stop is that of all others.
function told(values, codes) {
  const others = values.at(-1) === "others" ? values.length - 1 : STOPS;
  return { shares: Float32Array.from(codes, (code) => (Number.isFinite(code) ? (code === others ? 1 : code / (STOPS - 1)) : -1)) };
}

const short = (value) => (Number.isFinite(value) ? Number(value.toPrecision(3)).toLocaleString("en", { maximumSignificantDigits: 3 }) : "none");

// ---- drawing

const VERTEX = `#version 300 es
in vec2 place; in float share; in float chosen;
uniform vec2 middle; uniform vec2 zoom; uniform float size; uniform float dimmed;
uniform vec3 ramp[${STOPS}];
out vec4 color;
void main() {
  gl_Position = vec4((place - middle) * zoom, 0.0, 1.0);
  gl_PointSize = chosen < -0.5 ? 0.0 : (chosen > 0.5 ? size * 1.7 + 1.0 : size);
  float at = clamp(share, 0.0, 0.9999) * ${STOPS - 1}.0; int from = int(at);
  vec3 tint = mix(ramp[from], ramp[from + 1], fract(at));
  color = share < 0.0 ? vec4(0.5, 0.5, 0.5, 0.5) : vec4(tint, 0.85);
  if (dimmed > 0.5 && chosen < 0.5) color.a *= 0.18;
}`;
const FRAGMENT = `#version 300 es
precision mediump float; in vec4 color; out vec4 drawn;
void main() {
  vec2 off = gl_PointCoord - 0.5;
  if (dot(off, off) > 0.25) discard;
  drawn = vec4(color.rgb * color.a, color.a);
}`;

function webgl(points, order) {
  const gl = state.get("draw") === "canvas" ? null : plane.getContext("webgl2", { antialias: false, premultipliedAlpha: true, preserveDrawingBuffer: true });
  if (!gl) return null;
  const program = gl.createProgram();
  for (const [kind, text] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
    const shader = gl.createShader(kind);
    gl.shaderSource(shader, text);
    gl.compileShader(shader);
    gl.attachShader(program, shader);
  }
  gl.linkProgram(program);
  if (!gl.getProgramParameter(program, gl.LINK_STATUS)) return null;
  gl.useProgram(program);
  const buffer = (name, width) => {
    const made = gl.createBuffer();
    const at = gl.getAttribLocation(program, name);
    gl.bindBuffer(gl.ARRAY_BUFFER, made);
    gl.enableVertexAttribArray(at);
    gl.vertexAttribPointer(at, width, gl.FLOAT, false, 0, 0);
    return (data) => {
      gl.bindBuffer(gl.ARRAY_BUFFER, made);
      gl.bufferData(gl.ARRAY_BUFFER, data, gl.DYNAMIC_DRAW);
    };
  };
  const both = new Float32Array(2 * points.n);
  order.forEach((i, at) => both.set([points.x[i], points.y[i]], 2 * at));
  const inOrder = (values) => Float32Array.from(order, (i) => values[i]);
  buffer("place", 2)(both);
  const [share, chosen] = [buffer("share", 1), buffer("chosen", 1)];
  const uniform = (name) => gl.getUniformLocation(program, name);
  gl.enable(gl.BLEND);
  gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
  return {
    name: "webgl2",
    set(shares, flags, colors) {
      gl.uniform3fv(uniform("ramp"), colors.flat().map((value) => value / 255));
      share(inOrder(shares));
      chosen(inOrder(flags));
    },
    draw(view, size, dimmed, most) {
      gl.viewport(0, 0, plane.width, plane.height);
      gl.clearColor(0, 0, 0, 0);
      gl.clear(gl.COLOR_BUFFER_BIT);
      gl.uniform2f(uniform("middle"), view.x, view.y);
      gl.uniform2f(uniform("zoom"), (2 * view.scale) / plane.width, (2 * view.scale) / plane.height);
      gl.uniform1f(uniform("size"), size);
      gl.uniform1f(uniform("dimmed"), dimmed ? 1 : 0);
      gl.drawArrays(gl.POINTS, 0, most);
    },
  };
}

function canvas2d(points, order) {
  // By the CPU: where there is no WebGL, a canvas of the GPU is an imitation, and far slower.
  const context = plane.getContext("2d", { willReadFrequently: true });
  let shaded, shares, flags, shades;
  return {
    name: "canvas",
    set(newShares, newFlags, colors) {
      [shares, flags] = [newShares, newFlags];
      shades = Array.from({ length: SHADES }, (_, i) => `rgb(${shadeAt(colors, i / (SHADES - 1)).join(" ")} / .85)`);
      // By color, so that the pen changes 64 times and not for each point.
      shaded = Array.from({ length: SHADES + 1 }, () => []);
      order.forEach((i, at) => {
        if (flags[i] > -0.5) shaded[shares[i] < 0 ? SHADES : Math.min(SHADES - 1, Math.floor(shares[i] * SHADES))].push(at);
      });
    },
    draw(view, size, dimmed, most) {
      const { width, height } = plane;
      context.clearRect(0, 0, width, height);
      shaded.forEach((which, shade) => {
        context.fillStyle = shades[shade] ?? "rgb(128 128 128 / .5)";
        for (const at of which) {
          if (at >= most) break;
          const i = order[at];
          const x = (points.x[i] - view.x) * view.scale + width / 2;
          const y = height / 2 - (points.y[i] - view.y) * view.scale;
          if (x < 0 || y < 0 || x > width || y > height) continue;
          const wide = flags[i] > 0.5 ? size * 1.7 + 1 : size;
          context.globalAlpha = dimmed && flags[i] < 0.5 ? 0.18 : 1;
          context.fillRect(x - wide / 2, y - wide / 2, wide, wide);
        }
      });
    },
  };
}

// ---- the map

function start(points) {
  const order = shuffled(points.n);
  const drawing = webgl(points, order) ?? canvas2d(points, order);
  root.dataset.drawn = drawing.name;
  const pen = over.getContext("2d");
  const count = points.column.count;
  const fires = (i) => !count || count[i] > 0;
  let shares, low, high, lasso = [], chosen = null, hovered = -1, drawn = 0, lassoing = false, resting = 0;
  const view = { x: 0, y: 0, scale: 1 };
  const held = new Map();
  // Moved by hand, or by a wheel or keys that have only just stopped.
  const moving = () => resting > 0 || (held.size > 0 && plane.dataset.mode !== "lasso");
  function hasten() {
    clearTimeout(resting);
    resting = setTimeout(() => ((resting = 0), again()), 180);
    again();
  }
  const pixels = () => devicePixelRatio || 1;

  const shown = (i) => controls.elements.silent.checked || fires(i);
  const bounds = () => {
    const box = [Infinity, -Infinity, Infinity, -Infinity];
    for (let i = 0; i < points.n; i += 1) {
      if (!shown(i)) continue;
      box[0] = Math.min(box[0], points.x[i]), box[1] = Math.max(box[1], points.x[i]);
      box[2] = Math.min(box[2], points.y[i]), box[3] = Math.max(box[3], points.y[i]);
    }
    return box;
  };
  function whole() {
    const [left, right, below, above] = bounds();
    view.x = (left + right) / 2, view.y = (below + above) / 2;
    view.scale = 0.94 * Math.min(plane.width / (right - left || 1), plane.height / (above - below || 1));
  }
  const across = (i) => (points.x[i] - view.x) * view.scale + plane.width / 2;
  const down = (i) => plane.height / 2 - (points.y[i] - view.y) * view.scale;
  const place = (event) => {
    const box = plane.getBoundingClientRect();
    return [(event.clientX - box.left) * pixels(), (event.clientY - box.top) * pixels()];
  };
  const there = ([x, y]) => [(x - plane.width / 2) / view.scale + view.x, (plane.height / 2 - y) / view.scale + view.y];

  // Points by cell, for what is near the pointer.
  const cells = new Map();
  const [left, right] = bounds();
  const cell = (right - left) / 128 || 1;
  const key = (x, y) => `${Math.floor(x / cell)} ${Math.floor(y / cell)}`;
  for (let i = 0; i < points.n; i += 1) {
    const at = key(points.x[i], points.y[i]);
    cells.get(at)?.push(i) ?? cells.set(at, [i]);
  }
  function nearest(pixel, within = 14) {
    const [x, y] = there(pixel);
    const reach = (within * pixels()) / view.scale;
    const rings = Math.min(6, Math.ceil(reach / cell));
    let best = -1, least = reach * reach;
    for (let a = -rings; a <= rings; a += 1) {
      for (let b = -rings; b <= rings; b += 1) {
        for (const i of cells.get(key(x + a * cell, y + b * cell)) ?? []) {
          const far = (points.x[i] - x) ** 2 + (points.y[i] - y) ** 2;
          if (far <= least && shown(i)) [best, least] = [i, far];
        }
      }
    }
    return best;
  }

  // A label that is too long for the plane says little where it is cut.
  const fits = (text) => text && text.length <= 24;
  const brief = (i) => (fits(points.label[i]) ? points.label[i] : points.words[i].slice(0, 2).join(" ").replaceAll("·", "").slice(0, 24));
  const name = (i) => `${points.sae}/${points.id[i]}`;
  const address = (i) => root.dataset.feature + (root.dataset.feature.endsWith("=") ? encodeURIComponent(name(i)) : name(i).split("/").map(encodeURIComponent).join("/"));

  // What points are colored by: a number's rank, or which of a text's values.
  const by = () => controls.elements.color.value;
  const texts = () => points.values[by()];
  const said = (i) => {
    const value = points.column[by()][i];
    return texts() ? (texts()[value] ?? "none") : short(value);
  };
  async function recolor() {
    const wanted = by();
    try {
      await more(points, wanted);
    } catch (error) {
      readout.textContent = error.message;
      return;
    }
    if (wanted === by()) color();
  }
  function color() {
    const values = texts();
    ({ shares, low, high } = values ? told(values, points.column[by()]) : ranked(points.column[by()]));
    root.querySelector("[data-low]").textContent = by().replaceAll("_", " ") + (values ? "" : ` ${short(low)}`);
    root.querySelector("[data-high]").textContent = values ? "" : short(high);
    root.querySelector(".ramp").hidden = Boolean(values);
    const legend = root.querySelector("[data-values]");
    legend.hidden = !values;
    legend.replaceChildren(...(values ?? []).map((text, i) => {
      const [entry, dot] = [document.createElement("span"), document.createElement("i")];
      const at = text === "others" && i === values.length - 1 ? STOPS - 1 : i;
      dot.className = `v${at}`;
      entry.append(dot, text);
      return entry;
    }));
    flag();
    if (chosen) choose(chosen);
  }
  function flag() {
    const flags = new Float32Array(points.n);
    for (let i = 0; i < points.n; i += 1) flags[i] = shown(i) ? (chosen?.has(i) ? 1 : 0) : -1;
    drawing.set(shares, flags, stops(texts()));
    again();
  }
  function again() {
    drawn ||= requestAnimationFrame(() => {
      drawn = 0;
      const size = Math.min(10, Math.max(2.2, Math.sqrt((plane.width * plane.height) / points.n) * 0.34)) * Math.min(2.2, Math.max(1, Math.sqrt(view.scale / (view.base || view.scale))));
      const most = moving() ? Math.min(points.n, FAST) : points.n;
      drawing.draw(view, size * Math.min(1.5, pixels()), chosen !== null, most);
      root.dataset.shown = most;
      overlay();
    });
  }
  // The lasso, what is pointed at, and names where there is room for them.
  function overlay() {
    const ratio = pixels();
    pen.clearRect(0, 0, over.width, over.height);
    pen.font = `${12 * ratio}px system-ui, sans-serif`;
    const style = getComputedStyle(root);
    const [ink, paper] = [style.color, style.getPropertyValue("--panel")];
    pen.lineWidth = 3 * ratio;
    const taken = new Set();
    const said = new Set();
    const write = (i, text) => {
      pen.strokeStyle = paper, pen.fillStyle = ink;
      pen.strokeText(text, across(i) + 5 * ratio, down(i) - 5 * ratio);
      pen.fillText(text, across(i) + 5 * ratio, down(i) - 5 * ratio);
    };
    // Not while it is moved: frames come first.
    for (const i of moving() ? [] : names) {
      const [x, y] = [across(i), down(i)];
      if (x < 0 || y < 0 || x > plane.width || y > plane.height || !shown(i)) continue;
      const text = brief(i);
      const [column, row] = [Math.floor(x / (110 * ratio)), Math.floor(y / (30 * ratio))];
      const near = [-1, 0, 1].flatMap((a) => [-1, 0, 1].map((b) => `${column + a} ${row + b}`));
      if (said.has(text) || (chosen && !chosen.has(i)) || near.some((at) => taken.has(at))) continue;
      if (x + 5 * ratio + pen.measureText(text).width > plane.width) continue;
      taken.add(`${column} ${row}`), said.add(text);
      write(i, text);
    }
    if (lasso.length) {
      pen.strokeStyle = style.getPropertyValue("--accent"), pen.lineWidth = 2 * ratio;
      pen.beginPath();
      for (const [x, y] of lasso) pen.lineTo((x - view.x) * view.scale + plane.width / 2, plane.height / 2 - (y - view.y) * view.scale);
      pen.closePath(), pen.stroke();
    }
    if (hovered >= 0) {
      pen.strokeStyle = ink, pen.lineWidth = 2 * ratio;
      pen.beginPath(), pen.arc(across(hovered), down(hovered), 7 * ratio, 0, 7), pen.stroke();
    }
  }
  // Strongest first: the names that are kept where there is little room.
  const strong = points.column.max_activation ?? shares ?? points.x;
  const names = [...points.x.keys()].filter((i) => brief(i) && (!count || count[i] >= 20)).sort((a, b) => strong[b] - strong[a]).slice(0, 5000);

  function point(i) {
    if (i === hovered) return;
    hovered = i;
    const value = i < 0 ? "" : ` · ${by().replaceAll("_", " ")} ${said(i)}`;
    const about = i < 0 ? [] : [name(i), points.label[i], points.words[i].join(" ") || "never fires"];
    readout.textContent = about.filter(Boolean).join(" · ") + value;
    again();
  }

  function choose(which) {
    chosen = which && which.size ? which : null;
    const panel = root.querySelector("[data-chosen]");
    panel.hidden = which === null;
    if (which !== null) {
      const list = [...which].sort((a, b) => shares[b] - shares[a] || a - b);
      const ids = [...which].map((i) => points.id[i]).sort((a, b) => a - b);
      const predicate = ids.length ? `sae = '${points.sae.replaceAll("'", "''")}' AND feature_id IN (${ids.join(", ")})` : "false";
      root.querySelector("[data-count]").textContent = `${list.length.toLocaleString("en")} feature${list.length === 1 ? "" : "s"} chosen`;
      root.querySelector("[data-predicate]").textContent = predicate;
      root.querySelector("[data-last]").textContent = points.label.some(Boolean) ? "label · fires on" : "fires on";
      root.querySelector("[data-column]").textContent = by().replaceAll("_", " ");
      const rows = list.slice(0, 200).map((i) => {
        const [row, link, number, tokens] = [document.createElement("tr"), document.createElement("a"), document.createElement("td"), document.createElement("td")];
        link.href = address(i), link.textContent = name(i), link.className = "nowrap";
        number.textContent = said(i), number.className = "number";
        if (points.label[i]) {
          const label = document.createElement("b");
          label.textContent = points.label[i];
          tokens.append(label, " ");
        }
        for (const word of points.words[i]) {
          const chip = document.createElement("span");
          chip.className = "chip", chip.textContent = word;
          tokens.append(chip);
        }
        row.append(document.createElement("td"), number, tokens);
        row.firstChild.append(link);
        return row;
      });
      root.querySelector("[data-chosen] tbody").replaceChildren(...rows);
      const open = root.querySelector("[data-open]");
      open.replaceChildren();
      const query = `SELECT * FROM features WHERE ${predicate}`;
      if (root.dataset.sql && query.length < 6000) {
        const link = document.createElement("a");
        link.href = `${root.dataset.sql}?${new URLSearchParams({ q: query })}`, link.textContent = "Ask more about them in SQL";
        open.append(link);
      }
      if (list.length > 200) open.append(" The first 200 are listed.");
    }
    flag();
  }

  // Whether a point is inside the lasso, by how often a ray from it crosses.
  function within(i) {
    let inside = false;
    const [x, y] = [points.x[i], points.y[i]];
    for (let a = 0, b = lasso.length - 1; a < lasso.length; b = a, a += 1) {
      const [ax, ay] = lasso[a], [bx, by] = lasso[b];
      if (ay > y !== by > y && x < ((bx - ax) * (y - ay)) / (by - ay) + ax) inside = !inside;
    }
    return inside;
  }
  function byLasso() {
    const which = new Set();
    for (let i = 0; i < points.n; i += 1) if (shown(i) && within(i)) which.add(i);
    choose(which);
  }
  function byWords() {
    const text = controls.elements.find.value.trim().toLowerCase();
    const which = new Set();
    for (let i = 0; i < points.n; i += 1) {
      if (text && shown(i) && [points.label[i], ...points.words[i]].some((words) => words.toLowerCase().includes(text))) which.add(i);
    }
    choose(text ? which : null);
  }

  function remember() {
    const set = (name_, value) => (value ? state.set(name_, value) : state.delete(name_));
    set("color", controls.elements.color.selectedIndex ? by() : "");
    set("find", controls.elements.find.value.trim());
    set("silent", controls.elements.silent.checked ? "1" : "");
    set("at", view.scale === view.base ? "" : [view.x.toFixed(3), view.y.toFixed(3), (view.scale / view.base).toFixed(2)].join(","));
    const every = Math.ceil(lasso.length / 60);
    set("lasso", lasso.filter((_, i) => i % every === 0).map((p) => p.map((v) => v.toFixed(2)).join(",")).join(";"));
    history.replaceState(null, "", `${location.pathname}${state.size ? `?${state}` : ""}`);
  }

  function resize() {
    const box = plane.getBoundingClientRect();
    const before = plane.width;
    for (const each of [plane, over]) [each.width, each.height] = [Math.round(box.width * pixels()), Math.round(box.height * pixels())];
    const { x, y, scale, base } = view;
    whole();
    view.base = view.scale;
    if (before && base) Object.assign(view, { x, y, scale: (scale / base) * view.scale });
    again();
  }
  function zoom(factor, pixel = [plane.width / 2, plane.height / 2]) {
    const [x, y] = there(pixel);
    view.scale = Math.min(view.base * 400, Math.max(view.base * 0.5, view.scale * factor));
    const [newX, newY] = there(pixel);
    view.x += x - newX, view.y += y - newY;
    hasten();
  }

  let moved = 0;
  plane.addEventListener("pointerdown", (event) => {
    plane.setPointerCapture(event.pointerId);
    held.set(event.pointerId, place(event));
    moved = 0;
    if ((lassoing || event.shiftKey) && held.size === 1) lasso = [there(place(event))], (plane.dataset.mode = "lasso");
  });
  plane.addEventListener("pointermove", (event) => {
    const now = place(event), before = held.get(event.pointerId);
    if (!before) return point(nearest(now));
    moved += Math.hypot(now[0] - before[0], now[1] - before[1]);
    if (plane.dataset.mode === "lasso") lasso.push(there(now));
    else if (held.size === 1) view.x -= (now[0] - before[0]) / view.scale, view.y += (now[1] - before[1]) / view.scale;
    else {
      const other = [...held].find(([id]) => id !== event.pointerId)[1];
      zoom(Math.hypot(now[0] - other[0], now[1] - other[1]) / Math.hypot(before[0] - other[0], before[1] - other[1]), other);
    }
    held.set(event.pointerId, now);
    again();
  });
  const release = (event) => {
    if (!held.delete(event.pointerId)) return;
    if (plane.dataset.mode === "lasso") {
      delete plane.dataset.mode;
      if (lasso.length > 2) byLasso();
      else (lasso = []), choose(null);
    } else if (moved < 4 * pixels() && event.type === "pointerup") {
      const i = nearest(place(event));
      if (i >= 0) location.href = address(i);
    }
    again();
    remember();
  };
  plane.addEventListener("pointerup", release);
  plane.addEventListener("pointercancel", release);
  plane.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoom(2 ** (-event.deltaY / 400), place(event));
    remember();
  }, { passive: false });
  const middle = () => point(nearest([plane.width / 2, plane.height / 2], 60));
  plane.addEventListener("keydown", (event) => {
    const step = (0.12 * plane.width) / view.scale;
    const keys = {
      ArrowLeft: () => (view.x -= step), ArrowRight: () => (view.x += step),
      ArrowUp: () => (view.y += step), ArrowDown: () => (view.y -= step),
      "+": () => zoom(1.4), "=": () => zoom(1.4), "-": () => zoom(1 / 1.4), 0: whole,
      Enter: () => hovered >= 0 && (location.href = address(hovered)),
      Escape: () => ((lasso = []), choose(null)),
    };
    if (!keys[event.key] || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    keys[event.key]();
    middle();
    hasten();
    remember();
  });
  plane.addEventListener("focus", () => plane.matches(":focus-visible") && middle());
  controls.addEventListener("submit", (event) => event.preventDefault());
  controls.addEventListener("change", (event) => {
    if (event.target.name === "sae") {
      location.search = new URLSearchParams({ sae: event.target.value });
      return;
    }
    if (event.target.name === "silent") resize();
    recolor();
    remember();
  });
  controls.elements.find.addEventListener("input", () => {
    lasso = [];
    byWords();
    remember();
  });
  root.querySelector("[data-lasso]").addEventListener("click", (event) => {
    lassoing = !lassoing;
    event.target.setAttribute("aria-pressed", String(lassoing));
  });
  root.querySelector("[data-reset]").addEventListener("click", () => {
    lasso = [], controls.elements.find.value = "";
    whole();
    choose(null);
    remember();
  });
  new ResizeObserver(resize).observe(plane);

  const columns = [...points.columns, ...points.others.map(([text]) => text)];
  controls.elements.color.replaceChildren(...columns.map((text) => new Option(text.replaceAll("_", " "), text)));
  controls.elements.color.value = Object.hasOwn(points.column, state.get("color")) ? state.get("color") : columns[0];
  controls.elements.find.value = state.get("find") ?? "";
  controls.elements.silent.checked = state.get("silent") === "1";
  resize();
  color();
  const [x, y, times] = (state.get("at") ?? "").split(",").map(Number);
  if (times > 0) Object.assign(view, { x, y, scale: view.base * times });
  lasso = (state.get("lasso") ?? "").split(";").filter(Boolean).map((pair) => pair.split(",").map(Number));
  if (lasso.length > 2) byLasso();
  else if (controls.elements.find.value) byWords();
  root.dataset.ready = "true";
}

try {
  // Of a site of files, a file for each SAE.
  const files = JSON.parse(root.dataset.files || "{}");
  const points = await load(files[state.get("sae")] ?? root.dataset.points);
  await more(points, state.get("color"));
  start(points);
} catch (error) {
  readout.textContent = error.message;
  readout.className = "failure";
}
