// featuredb explorer: everything works without this module. It saves clicks and keys.
"use strict";

const typing = (target) => target.closest?.("input, textarea, select, [contenteditable]");

// A page of this server, parsed by the browser without a script of it being run.
function fetched(url) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("GET", url);
    request.responseType = "document";
    request.onload = () => resolve(request.responseXML);
    request.onerror = () => reject(new Error("the server is gone"));
    request.send();
  });
}

async function replace(section, url) {
  try {
    const panel = (await fetched(url)).querySelector(".panel, main");
    const arrived = document.importNode(panel, true);
    section.replaceWith(arrived);
    prepare(arrived);
  } catch {
    section.querySelector("p")?.replaceChildren("The server does not answer.");
  }
}

// Panels below the fold are asked for as they come near.
const watcher = new IntersectionObserver(
  (entries) => {
    for (const { isIntersecting, target } of entries) {
      if (isIntersecting) {
        watcher.unobserve(target);
        replace(target, target.dataset.src);
      }
    }
  },
  { rootMargin: "300px" },
);

async function wait(line) {
  const section = line.closest(".panel");
  const said = line.querySelector("span");
  for (;;) {
    await new Promise((resolve) => setTimeout(resolve, 1000));
    const status = await (await fetch(line.dataset.status ?? "/model")).json();
    if (status.state === "ready" || status.state === "failed") break;
    const what = line.dataset.status ? "Features are being placed" : "The model is being loaded";
    said.textContent = `${what}, once: ${Math.round(status.seconds)} s.`;
  }
  if (line.dataset.status) return location.reload();
  // The form of the text page may have sent what an address does not hold.
  if (document.querySelector("form[method=post] textarea")?.value) location.reload();
  else replace(section, line.dataset.wait);
}

// One stop of the Tab key for each text: arrows go from token to token.
function step(event) {
  const text = event.target.closest("[data-text]");
  const forward = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!text || !forward || event.target.tagName !== "MARK") return false;
  const marks = [...text.querySelectorAll("mark")];
  const next = marks[marks.indexOf(event.target) + forward];
  if (next) {
    next.tabIndex = 0;
    next.focus();
    event.target.tabIndex = -1;
  }
  event.preventDefault();
  return true;
}

function prepare(root) {
  for (const section of root.querySelectorAll("[data-src]")) watcher.observe(section);
  if (root.matches?.("[data-src]")) watcher.observe(root);
  for (const line of root.querySelectorAll("[data-wait]")) wait(line);
  for (const text of root.querySelectorAll("[data-text]")) {
    const first = text.querySelector("mark");
    if (first && !text.querySelector("mark[tabindex]")) first.tabIndex = 0;
  }
}

document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copy]");
  if (!button) return;
  const text = button.parentElement.querySelector("code").textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    getSelection().selectAllChildren(button.parentElement.querySelector("code"));
    button.textContent = "Selected";
  }
  setTimeout(() => (button.textContent = "Copy"), 1500);
});

document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && event.target.form) {
    event.target.form.requestSubmit();
    return;
  }
  if (step(event) || event.ctrlKey || event.metaKey || event.altKey || typing(event.target)) return;
  const go = (selector) => document.querySelector(selector)?.click();
  if (event.key === "/") {
    event.preventDefault();
    document.querySelector("#quick")?.focus();
  } else if (event.key === "j") go("a[rel=next]");
  else if (event.key === "k") go("a[rel=prev]");
  else if (event.key === "r") go("a[data-random]") ?? (location.href = "/random");
});

// The density slider says what it means, and fills the field that is sent.
const slider = document.querySelector("#density");
if (slider) {
  const field = slider.form.elements.max_density;
  const out = document.querySelector("#density-out");
  const say = () => {
    const share = 10 ** Number(slider.value);
    out.textContent = Number(slider.value) >= 0 ? "any" : `1 in ${Math.round(1 / share).toLocaleString("en")}`;
    field.value = Number(slider.value) >= 0 ? "" : share.toPrecision(3);
  };
  slider.value = field.value ? Math.log10(Number(field.value)) : 0;
  say();
  slider.addEventListener("input", say);
  slider.addEventListener("change", () => slider.form.requestSubmit());
}

// Only what is set goes into the address, and what is too long for one is sent.
const LONGEST = 4000;
document.addEventListener("submit", ({ target: form }) => {
  // As an attribute: a field may have the name method.
  if ("short" in form.dataset) {
    const bytes = ([, value]) => encodeURIComponent(value.replaceAll("\n", "\r\n")).length;
    const short = [...new FormData(form)].every((field) => bytes(field) <= LONGEST);
    form.setAttribute("method", short ? "get" : "post");
  }
  if (form.getAttribute("method") === "post") return;
  for (const field of form.elements) {
    if (field.name && field.value === "") field.disabled = true;
  }
});
addEventListener("pageshow", () => {
  for (const field of document.querySelectorAll("[name]:disabled")) field.disabled = false;
});

// An edit in multiples of the stored maximum has a slider beside its text.
const MULTIPLE = /^(\s*[^=@]*?[0-9]\s*\+?=\s*)(-?[0-9.]+)(x.*)?$/s;
for (const line of document.querySelectorAll("[data-edit]")) {
  const [text, slide] = line.querySelectorAll("input");
  const out = line.querySelector("output");
  const follow = () => {
    const found = MULTIPLE.exec(text.value);
    slide.hidden = !(found && (found[3] || Number(found[2]) === 0));
    out.textContent = slide.hidden ? "" : `${Number(found[2])} ×`;
    if (!slide.hidden) slide.value = found[2];
  };
  text.addEventListener("input", follow);
  slide.addEventListener("input", () => {
    const value = Number(slide.value);
    text.value = text.value.replace(MULTIPLE, (_, before, __, after) => `${before}${value}${after ?? "x"}`);
    out.textContent = `${value} ×`;
  });
  follow();
}

const STATES = {
  loading: (fact) => `The model is being loaded, once: ${Math.round(fact.seconds ?? 0)} s.`,
  waiting: () => "Waits until another generation has ended.",
  generating: () => "Being generated.",
};

// Both texts as they are generated, then what the edits changed.
async function generate(section) {
  const status = section.querySelector("[role=status]");
  const stop = section.querySelector("[data-stop]");
  const texts = Object.fromEntries([...section.querySelectorAll("[data-variant]")].map((p) => [p.dataset.variant, p]));
  const abort = new AbortController();
  const end = () => abort.abort();
  const escape = (event) => event.key === "Escape" && end();
  stop.hidden = false;
  stop.addEventListener("click", end);
  document.addEventListener("keydown", escape);
  addEventListener("pagehide", end);
  let failure = "The server does not answer.";
  try {
    const reply = await fetch(section.dataset.stream, { signal: abort.signal });
    let rest = "";
    const pieces = reply.body.pipeThrough(new TextDecoderStream()).getReader();
    for (;;) {
      const { value, done } = await pieces.read();
      if (done) break;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const fact of lines.map((line) => JSON.parse(line))) {
        if (fact.state === "done") {
          stop.hidden = true;
          await replace(section, section.dataset.then);
          return;
        }
        if (fact.error) failure = fact.error;
        else if (fact.variant) texts[fact.variant].textContent += fact.text;
        else status.textContent = STATES[fact.state](fact);
      }
    }
    status.className = "failure";
  } catch {
    if (abort.signal.aborted) failure = "Stopped.";
  } finally {
    document.removeEventListener("keydown", escape);
  }
  stop.hidden = true;
  status.textContent = failure;
}
for (const section of document.querySelectorAll("[data-stream]")) generate(section);

prepare(document);
