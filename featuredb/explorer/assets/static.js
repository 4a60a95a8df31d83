// featuredb site: reads the files beside it by ranges, and draws what the server's templates draw.
"use strict";
import { decompress, parquetMetadata, parquetReadObjects } from "./hyparquet.js";

const site = JSON.parse(document.getElementById("site").textContent);
const main = document.getElementById("main");
const asked = new URLSearchParams(location.search);

// An element. Texts are only ever text.
function el(name, attributes = {}, ...inside) {
  const svg = ["svg", "g", "rect", "line", "title"].includes(name);
  const made = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== false && value !== null && value !== "") made.setAttribute(key, value);
  }
  made.append(...inside.flat(Infinity).filter((each) => each !== null && each !== undefined && each !== ""));
  return made;
}

// ---- files

class Unreadable extends Error {}

async function range(path, start, end) {
  let reply;
  try {
    reply = await fetch(`data/${path}`, { headers: { Range: `bytes=${start}-${end - 1}` } });
  } catch {
    throw new Unreadable("The files cannot be read. A page opened from a folder may read none: serve the folder (featuredb serve --site).");
  }
  if (!reply.ok) throw new Unreadable(`${path} cannot be read (${reply.status}).`);
  const data = await reply.arrayBuffer();
  // A host without ranges sends the whole file.
  return reply.status === 206 ? data : data.slice(start, end);
}

const opened = new Map();

// A Parquet file: its footer is read once.
function open({ path, bytes, footer }) {
  if (!opened.has(path)) {
    opened.set(
      path,
      range(path, bytes - footer, bytes).then((data) => ({
        metadata: parquetMetadata(data),
        file: { byteLength: bytes, slice: (start, end = bytes) => range(path, start, end) },
      })),
    );
  }
  return opened.get(path);
}

const compressors = { ZSTD: (input, length) => decompress(input, new Uint8Array(length)) };

async function rows(about, rowStart, rowEnd, columns) {
  const { file, metadata } = await open(about);
  return parquetReadObjects({ file, metadata, rowStart, rowEnd, columns, compressors });
}

// The rows of the row groups whose statistics allow a value of a column.
async function rowsWith(about, column, allows, columns) {
  const { metadata } = await open(about);
  const found = [];
  let first = 0;
  for (const group of metadata.row_groups) {
    const end = first + Number(group.num_rows);
    const chunk = group.columns.find((each) => each.meta_data.path_in_schema[0] === column);
    const { min_value: low, max_value: high } = chunk.meta_data.statistics ?? {};
    if (low === undefined || allows(low, high)) found.push(rows(about, first, end, columns));
    first = end;
  }
  return (await Promise.all(found)).flat();
}

// ---- features

const address = (name) => `feature.html?f=${encodeURIComponent(name)}`;

function feature(name) {
  if (!name) throw new Unreadable("No feature is named: give one, as in feature.html?f=" + site.saes[0].name + "/12.");
  const slash = name.lastIndexOf("/");
  const number = Number(name.slice(slash + 1));
  const sae = site.saes.find((each) => each.name === (slash < 0 && site.saes.length === 1 ? each.name : name.slice(0, slash)));
  if (!sae) throw new Unreadable(`There is no SAE ${name.slice(0, slash) || name}: this site has ${site.saes.map((s) => s.name).join(", ")}.`);
  if (!/^[0-9]+$/.test(name.slice(slash + 1)) || number >= sae.d_sae) {
    throw new Unreadable(`There is no feature ${name.slice(slash + 1)}: ${sae.name} has features 0 to ${sae.d_sae - 1}.`);
  }
  return { sae, number };
}

async function card({ sae, number }) {
  const about = sae.cards.findLast((each) => each.first <= number);
  const row = number - about.first;
  const first = row - (row % site.features_a_group);
  const { metadata } = await open(about);
  const end = Math.min(first + site.features_a_group, Number(metadata.num_rows));
  return JSON.parse((await rows(about, first, end))[row - first].card);
}

// ---- parts: [macro, arguments…], as templates/parts.html draws them

const draw = {
  heading: (before, subject, after) => el("h3", {}, before, el("b", {}, subject), el("span", { class: "dim" }, after)),
  dim: (text) => el("span", { class: "dim" }, text),
  nowrap: (text) => el("span", { class: "nowrap" }, text),
  feature: (name) => el("a", { class: "nowrap", href: address(name) }, name),
  tokens: (labels, more = 0, title = "") => [
    title ? [el("b", {}, title), " "] : "",
    labels.length === 1 && !more
      ? el("span", { class: "chip nowrap" }, labels[0])
      : el("span", { class: "tokens" }, labels.map((text) => [el("span", { class: "chip" }, text), " "]), more ? draw.dim(`+${more}`) : ""),
  ],
  bar: (percent) =>
    el("svg", { class: "share", width: 64, height: 8, role: "img", "aria-label": `${percent} percent` },
      el("rect", { class: "bin", width: 64, height: 8 }), el("rect", { class: "bar", width: `${percent}%`, height: 8 })),
  facts: (lines) => el("dl", {}, lines.map(([name, value]) => [el("dt", {}, name), el("dd", {}, part(value))])),
  group: (blocks) => el("div", { class: "group" }, blocks.map((block) => el("div", {}, part(block)))),
  window: (words, before = "", after = "") => [
    before ? draw.dim(before) : "",
    el("span", { class: "text", "data-text": "true" }, words.map(([space, word, shade, peak, value]) => [
      space,
      shade || peak
        ? el("mark", { class: `${shade < 0 ? "n" : "a"}${Math.abs(shade)}${peak ? " peak" : ""}`, "data-value": value, tabindex: peak ? 0 : null }, part(word))
        : part(word),
    ])),
    after ? draw.dim(after) : "",
  ],
  table: (head, lines, numeric = [], below = []) => {
    const row = (cells, after) => [
      el("tr", {}, cells.map((value, i) => el("td", { class: numeric.includes(i) && "number", "data-label": head?.[i] }, part(value)))),
      after ? el("tr", { class: "below" }, el("td"), el("td", { colspan: cells.length - 1 }, part(after))) : "",
    ];
    return el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "table" }, el("table", {},
      head ? el("thead", {}, el("tr", {}, head.map((name, i) => (name ? el("th", { scope: "col", class: numeric.includes(i) && "number" }, name) : el("td"))))) : "",
      el("tbody", {}, lines.map((line, i) => row(line, below[i])))));
  },
  passages: (items, ranked) =>
    el("ol", { class: `passages${ranked ? "" : " plain"}` }, items.map(([[rank, about, title, link], activation, shown]) =>
      el("li", {},
        ranked ? el("div", { class: "value" }, draw.dim(rank), " ", el("b", {}, activation)) : "",
        el("div", { class: "passage" }, el("p", {}, part(shown)),
          about ? el("p", { class: "about" }, title && link ? [el("a", { href: link, rel: "noopener noreferrer", target: "_blank" }, title), about.slice(title.length)] : about) : "")))),
  bars: (title, bins, low, high) => {
    const width = 400 / Math.max(1, bins.length);
    return el("figure", {}, el("figcaption", {}, title),
      el("svg", { class: "bars", viewBox: "0 0 400 101", preserveAspectRatio: "none", role: "img", "aria-label": `${title}, ${low} to ${high}` },
        bins.map(([percent, about], i) => el("g", {},
          el("rect", { class: "bin", x: (i * width).toFixed(1), y: 0, width: width.toFixed(1), height: 100 }),
          el("rect", { class: "bar", x: (i * width).toFixed(1), y: (100 - percent).toFixed(1), width: (width - 1.2).toFixed(1), height: percent }),
          el("title", {}, about))),
        el("line", { class: "axis", x1: 0, x2: 400, y1: 100.5, y2: 100.5 })),
      el("div", { class: "ends" }, el("span", {}, low), el("span", {}, high)));
  },
};

function part(value) {
  if (!Array.isArray(value)) return value === null || value === undefined ? "" : String(value);
  if (typeof value[0] === "string" && Object.hasOwn(draw, value[0])) return draw[value[0]](...value.slice(1));
  return value.map(part);
}

const section = (inside) => el("div", { class: "part" }, part(inside));
const panel = (title, inside) => el("section", { class: "panel" }, el("h2", {}, title), inside);

function features(list, scores) {
  const last = list.some((each) => each.label) ? "label · fires on" : "fires on";
  return draw.table(["", "feature", ...scores, last], list.map((each, i) => [
    String(i + 1), ["feature", each.name], ...each.scores, ["tokens", each.tokens, 0, each.label],
  ]), [0, ...scores.map((_, i) => i + 2)]);
}

// ---- pages

const pages = {
  index: () => {},
  map: () => {}, // map.js
  async feature() {
    const { sae, number } = feature(asked.get("f") ?? "");
    const name = `${sae.name}/${number}`;
    document.title = `${name} · featuredb`;
    const shown = await card({ sae, number });
    const step = (to, text, rel) => (to >= 0 && to < sae.d_sae ? el("a", { rel, href: address(`${sae.name}/${to}`) }, text) : "");
    const title = el("div", { class: "title" },
      el("h1", {}, el("span", { class: "dim" }, `${sae.name} / `), String(number)),
      shown.label ? el("p", { class: "meaning" }, shown.label) : "",
      el("p", { class: "name" }, shown.top.map((text) => [el("span", { class: "chip" }, text), " "])),
      el("nav", { class: "steps", "aria-label": "Features" },
        step(number - 1, "Previous", "prev"), step(number + 1, "Next", "next"),
        el("a", { href: `near.html?f=${encodeURIComponent(name)}` }, "Near")));
    main.append(title, el("div", { class: "columns" },
      el("div", { class: "wide" }, panel("Top contexts", shown.contexts ? section(shown.contexts) : el("p", { class: "dim" }, "It never fires on the recorded tokens.")),
        panel("Nearest", shown.near.map(section))),
      el("div", { class: "narrow" }, panel("Statistics", shown.numbers.map(section)))));
  },
  async near() {
    const { sae, number } = feature(asked.get("f") ?? "");
    const name = `${sae.name}/${number}`;
    document.title = `Near ${name} · featuredb`;
    const { label } = await about(sae.name, number);
    main.append(el("h1", {}, "Near ", el("a", { href: address(name) }, name), label ? ` ${label}` : ""));
    for (const [by, score] of [["decoder", "cosine"], ["encoder", "cosine"], ["coactivation", "jaccard"]]) {
      const near = (await rowsWith(site.files[by], "feature_id", (low, high) => low <= number && number <= high))
        .filter((row) => row.sae === sae.name && Number(row.feature_id) === number);
      near.sort((a, b) => a.rank - b.rank);
      const list = await Promise.all(near.map(async (row) => ({
        name: `${row.neighbor_sae}/${row.neighbor_id}`, scores: [row.score.toFixed(3)],
        ...(await about(row.neighbor_sae, Number(row.neighbor_id))),
      })));
      main.append(panel(`By ${by}`, list.length ? features(list, [score]) : el("p", { class: "dim" }, "none")));
    }
  },
  async search() {
    const query = asked.get("q") ?? "";
    document.title = `${query || "Search"} · featuredb`;
    main.append(el("h1", {}, "Search"), el("form", { class: "big", role: "search" },
      el("label", { for: "q" }, "Words, or the number of a feature"),
      el("input", { id: "q", name: "q", type: "search", value: query, required: "required" }), el("button", {}, "Search")));
    if (!query.trim()) return;
    if (/^(.+\/)?[0-9]+$/.test(query.trim()) && (query.includes("/") || site.saes.length === 1)) {
      location.replace(address(query.trim()));
      return;
    }
    const words = [...new Set(query.toLowerCase().match(/[\p{L}\p{N}\p{M}_]+/gu) ?? [])];
    const hits = new Map();
    for (const word of words) {
      const found = (await rowsWith(site.files.words, "word", (low, high) => low <= word && word <= high)).filter((row) => row.word === word);
      // Words of many features say little.
      const weight = 1 / Math.log2(2 + found.length);
      for (const row of found) {
        const name = `${row.sae}/${row.feature_id}`;
        const hit = hits.get(name) ?? { name, score: 0, matched: [], tokens: split(row.top_tokens), label: row.label, density: row.density };
        hit.score += weight * row.share;
        hit.matched.push(word);
        hits.set(name, hit);
      }
    }
    const best = [...hits.values()].sort((a, b) => b.matched.length - a.matched.length || b.score - a.score).slice(0, 40);
    for (const hit of best) hit.scores = [hit.matched.join(" "), hit.density ? `1 in ${Math.round(1 / hit.density).toLocaleString("en")}` : "never"];
    main.append(panel(best.length ? "Features" : "No features", best.length ? features(best, ["matched", "density"])
      : el("p", { class: "dim" }, "No feature has these in its label or among the tokens it fires on most. Words of several tokens are found with featuredb search --by evidence.")));
  },
};

const GROUP = 512;
const groups = new Map();

const split = (text) => (text ? text.split("\t") : []);

// A feature's tokens and label.
async function about(name, number) {
  let row = number;
  for (const sae of site.saes) {
    if (sae.name === name) break;
    row += sae.d_sae;
  }
  const first = row - (row % GROUP);
  if (!groups.has(first)) {
    const end = open(site.files.tokens).then(({ metadata }) => Math.min(first + GROUP, Number(metadata.num_rows)));
    groups.set(first, end.then((until) => rows(site.files.tokens, first, until)));
  }
  const { top_tokens: tokens, label } = (await groups.get(first))[row - first];
  return { tokens: split(tokens), label };
}

document.addEventListener("keydown", (event) => {
  const mark = event.target.closest?.("mark");
  const forward = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (mark && forward) {
    const marks = [...mark.closest("[data-text]").querySelectorAll("mark")];
    const next = marks[marks.indexOf(mark) + forward];
    if (next) [mark.tabIndex, next.tabIndex] = [-1, 0], next.focus();
    event.preventDefault();
    return;
  }
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest?.("input, textarea")) return;
  if (event.key === "/") {
    event.preventDefault();
    document.getElementById("quick").focus();
  } else if (event.key === "j") document.querySelector("a[rel=next]")?.click();
  else if (event.key === "k") document.querySelector("a[rel=prev]")?.click();
  else if (event.key === "r") {
    const sae = site.saes[Math.floor(Math.random() * site.saes.length)];
    location.href = address(`${sae.name}/${Math.floor(Math.random() * sae.d_sae)}`);
  }
});

try {
  await pages[main.dataset.page]();
} catch (error) {
  main.append(el("p", { class: "failure", role: "alert" }, error instanceof Unreadable ? error.message : `The page failed: ${error.message}`));
}
