"use strict";
// The page is whole without this: it hides arms, shows the value under the pointer at once, and says which tables scroll.
for (const box of document.querySelectorAll(".box")) {
  const hint = document.createElement("p");
  hint.className = "hint";
  hint.textContent = "This table is wider than the page: scroll it sideways, or select it and use the arrow keys.";
  box.before(hint);
  new ResizeObserver(() => { hint.hidden = box.scrollWidth <= box.clientWidth; }).observe(box);
}
for (const button of document.querySelectorAll(".legend button")) {
  button.disabled = false;
  button.setAttribute("aria-pressed", "true");
  button.addEventListener("click", () => {
    const shown = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", String(shown));
    for (const part of document.querySelectorAll(`figure [data-arm="${button.value}"]`)) part.classList.toggle("off", !shown);
  });
}
const tip = document.createElement("div");
tip.className = "tip";
tip.hidden = true;
document.body.append(tip);
const reach = 24; // pixels from the pointer
for (const svg of document.querySelectorAll("figure svg")) {
  const circles = [...svg.querySelectorAll(".points circle")];
  const said = new Map(circles.map(circle => [circle, circle.textContent]));
  for (const circle of circles) circle.replaceChildren(); // or the browser's own tip would come, too
  const leave = () => { tip.hidden = true; for (const circle of circles) circle.classList.remove("near"); };
  const look = event => {
    leave();
    let near = null, least = reach;
    for (const circle of circles) {
      if (circle.classList.contains("off")) continue;
      const at = circle.getBoundingClientRect();
      const distance = Math.hypot(at.x + at.width / 2 - event.clientX, at.y + at.height / 2 - event.clientY);
      if (distance < least) { least = distance; near = circle; }
    }
    if (!near) return;
    near.classList.add("near");
    tip.textContent = said.get(near);
    tip.hidden = false;
    const left = Math.min(event.clientX + 12, document.documentElement.clientWidth - tip.offsetWidth - 8);
    tip.style.left = `${Math.max(left, 4) + window.scrollX}px`;
    tip.style.top = `${event.clientY + window.scrollY + 16}px`;
  };
  svg.addEventListener("pointermove", look);
  svg.addEventListener("pointerdown", look);
  svg.addEventListener("pointerleave", leave);
}
