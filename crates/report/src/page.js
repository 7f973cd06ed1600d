// Values under the pointer. Every chart carries them already formatted, evenly spread along its axis.
(() => {
  const tip = document.getElementById("tip");
  let rule = null;
  const hide = () => { tip.hidden = true; if (rule) rule.remove(); rule = null; };
  for (const figure of document.querySelectorAll("figure[data-hover]")) {
    const data = JSON.parse(figure.dataset.hover);
    const last = data.x.length - 1;
    if (last < 1) continue;
    for (const svg of figure.querySelectorAll("svg")) {
      const [x0, x1, top, bottom] = svg.dataset.box.split(" ").map(Number);
      const show = (event) => {
        const box = svg.getBoundingClientRect();
        const scale = svg.viewBox.baseVal.width / box.width;
        const share = ((event.clientX - box.left) * scale - x0) / (x1 - x0);
        const at = Math.max(0, Math.min(last, Math.round(share * last)));
        const x = x0 + (at / last) * (x1 - x0);
        if (!rule || rule.parentNode !== svg) {
          hide();
          rule = document.createElementNS("http://www.w3.org/2000/svg", "line");
          rule.setAttribute("class", "rule");
          rule.setAttribute("y1", top);
          rule.setAttribute("y2", bottom);
          svg.insertBefore(rule, svg.firstChild);
        }
        rule.setAttribute("x1", x);
        rule.setAttribute("x2", x);
        tip.textContent = "";
        const line = (text, name) => {
          const div = tip.appendChild(document.createElement("div"));
          div.textContent = text;
          if (name) div.className = name;
        };
        line(`${data.x[at]} ${data.u}`);
        for (const s of data.s) line(`${data.s.length > 1 ? s.n + " " : ""}${s.v[at]} ${data.unit}`, s.c);
        tip.hidden = false;
        const left = box.left + x / scale;
        const flip = left + tip.offsetWidth + 24 > document.documentElement.clientWidth;
        tip.style.left = `${window.scrollX + (flip ? left - tip.offsetWidth - 12 : left + 12)}px`;
        tip.style.top = `${window.scrollY + Math.max(4, event.clientY - tip.offsetHeight - 8)}px`;
      };
      svg.addEventListener("pointermove", show);
      svg.addEventListener("pointerdown", show);
      svg.addEventListener("pointerleave", hide);
    }
  }
})();
