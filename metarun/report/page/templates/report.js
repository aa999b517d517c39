"use strict";
// What a reader can do with a page: point at values, zoom, change an axis, smooth, hide runs, sort and filter tables.
// It reads the numbers that the page holds and nothing else. Without it the page shows its figures as images.
(() => {
  const css = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const make = (tag, className, text) => {
    const node = document.createElement(tag);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  };
  const number = v => v == null ? "\u2013" : Math.abs(v) >= 1e5 || (v !== 0 && Math.abs(v) < 1e-3)
    ? v.toExponential(2) : String(+v.toPrecision(5));
  const plots = [];
  const hidden = new Set();  // labels of lines that are off, on the whole page

  // A running mean over the values at most `reach` places away.
  const smooth = (y, reach) => reach < 1 ? y : y.map((_, at) => {
    let total = 0, count = 0;
    for (let k = Math.max(0, at - reach); k <= Math.min(y.length - 1, at + reach); k++)
      if (y[k] != null) { total += y[k]; count++; }
    return count ? total / count : null;
  });

  // Colours of the figures that are lost on dark paper.
  const LIGHTER = { "#0072B2": "#4DA9E8", "#009E73": "#2CC295", "#D55E00": "#FF8A4C", "#000000": "#E8E8E8" };
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const visible = colour => dark.matches && LIGHTER[colour.toUpperCase()] || colour;

  const vertical = (u, chart) => {
    const context = u.ctx;
    context.save();
    context.strokeStyle = context.fillStyle = css("--soft");
    context.lineWidth = devicePixelRatio;
    context.font = `${11 * devicePixelRatio}px sans-serif`;
    const { left, top, width, height } = u.bbox;
    chart.marks.forEach(([x, text]) => {
      const at = u.valToPos(x, "x", true);
      if (at < left || at > left + width) return;
      context.setLineDash([3 * devicePixelRatio, 3 * devicePixelRatio]);
      context.beginPath(); context.moveTo(at, top); context.lineTo(at, top + height); context.stroke();
      context.textAlign = at > left + width / 2 ? "right" : "left";
      context.fillText(text, at + (at > left + width / 2 ? -5 : 5) * devicePixelRatio, top + 12 * devicePixelRatio);
    });
    chart.references.forEach(([y, text]) => {
      const at = u.valToPos(y, "y", true);
      if (!(at >= top && at <= top + height)) return;
      context.setLineDash([5 * devicePixelRatio, 4 * devicePixelRatio]);
      context.beginPath(); context.moveTo(left, at); context.lineTo(left + width, at); context.stroke();
      context.textAlign = "right";
      context.fillText(text, left + width - 4 * devicePixelRatio, at - 4 * devicePixelRatio);
    });
    context.restore();
  };

  class Panel {
    constructor(chart, place) {
      this.chart = chart;
      this.log = chart.log;
      this.smoothing = chart.series.some(s => s.noisy) ? 0.04 : 0;
      this.box = make("div", "panel");
      const bar = make("div", "bar");
      bar.append(make("strong", "", chart.title));
      const controls = make("span", "controls");
      if (chart.series.some(s => s.noisy && s.x.length > 9)) {
        const label = make("label", "", "smoothing ");
        const slider = Object.assign(make("input"), { type: "range", min: 0, max: 100, value: 20 });
        slider.addEventListener("input", () => { this.smoothing = (slider.value / 100) ** 2; this.draw(true); });
        label.append(slider);
        controls.append(label);
      }
      if (chart.series.some(s => s.y.some(v => v > 0))) {
        const button = make("button", "log", "log");
        button.type = "button";
        const show = () => button.setAttribute("aria-pressed", String(this.log));
        button.addEventListener("click", () => { this.log = !this.log; show(); this.draw(false); });
        show();
        controls.append(button);
      }
      const reset = make("button", "reset", "whole");
      reset.type = "button";
      reset.title = "show the whole range (a double click does the same; drag to zoom)";
      reset.addEventListener("click", () => this.draw(false));
      controls.append(reset);
      bar.append(controls);
      this.canvas = make("div", "canvas");
      this.box.append(bar, this.canvas);
      place.append(this.box);
      plots.push(this);
    }

    lines() {
      const found = [];
      this.chart.series.forEach((s, at) => {
        const own = { ...s, colour: visible(s.colour), of: at, at: found.length };
        const reach = s.noisy ? Math.round(this.smoothing * s.y.length) : 0;
        if (s.low) found.push({ ...own, part: "low", values: s.low }, { ...own, part: "high", values: s.high });
        if (s.noisy && reach) found.push({ ...own, part: "raw", values: s.y });
        found.push({ ...own, part: "line", values: smooth(s.y, reach) });
      });
      return found;
    }

    options(lines, keep) {
      const axis = { stroke: css("--soft"), grid: { stroke: css("--line"), width: 1 }, ticks: { stroke: css("--line"), width: 1 } };
      const bands = [];
      lines.forEach((l, at) => { if (l.part === "high") bands.push({ series: [at + 1, at], fill: l.colour + "30" }); });
      const series = lines.map(l => ({
        label: l.part === "line" ? l.label : l.label + { low: " (lower)", high: " (upper)", raw: " (records)" }[l.part],
        stroke: l.part === "line" ? l.colour : l.part === "raw" ? l.colour + "55" : "transparent",
        width: l.part === "line" ? 2 : 1,
        dash: l.dashed && l.part === "line" ? [6, 4] : undefined,
        points: { show: l.part === "line" && l.values.length < 40, size: 5, fill: l.colour },
        spanGaps: true,
        show: !hidden.has(l.label),
        value: (u, v) => number(v),
      }));
      const scales = { x: { time: false }, y: this.log ? { distr: 3 } : {} };
      if (keep) for (const key of ["x", "y"]) scales[key].range = [keep[key].min, keep[key].max];
      return {
        width: Math.max(200, this.canvas.clientWidth), height: Math.max(190, Math.min(300, this.canvas.clientWidth * 0.62)),
        scales, bands,
        cursor: { drag: { x: true, y: true, uni: 24 }, focus: { prox: 24 } },
        legend: { live: true },
        series: [{ label: this.chart.x, value: (u, v) => number(v) }, ...series],
        axes: [
          { ...axis, label: this.chart.x, labelSize: 18, size: 34, labelFont: "11px sans-serif", font: "11px sans-serif",
            values: (u, ticks) => ticks.map(number) },
          { ...axis, label: this.chart.y, labelSize: 18, size: 52, labelFont: "11px sans-serif", font: "11px sans-serif",
            values: (u, ticks) => ticks.map(v => v == null ? "" : number(v)) },
        ],
        hooks: { draw: [u => vertical(u, this.chart)] },
      };
    }

    draw(keepZoom) {
      const lines = this.lines();
      const positive = values => this.log ? values.map(v => v > 0 ? v : null) : values;
      const data = lines.length ? uPlot.join(lines.map(l => [l.x, positive(l.values)])) : [[]];
      let keep = null;
      if (keepZoom && this.plot && this.zoomed) keep = { x: this.plot.scales.x, y: this.plot.scales.y };
      if (this.plot) this.plot.destroy();
      const options = this.options(lines, null);
      this.zoomed = false;
      options.hooks.setSelect = [u => { this.zoomed = u.select.width > 0 || u.select.height > 0; }];
      this.plot = new uPlot(options, data, this.canvas);
      if (keep) {
        this.zoomed = true;
        for (const key of ["x", "y"]) this.plot.setScale(key, { min: keep[key].min, max: keep[key].max });
      }
      // The legend has a line for each curve, and not for its band and its records.
      const rows = this.plot.root.querySelectorAll(".u-legend .u-series");
      lines.forEach((l, at) => {
        const row = rows[at + 1];
        if (l.part !== "line") { row.hidden = true; return; }
        row.tabIndex = 0;
        const toggle = event => {
          event.preventDefault(); event.stopPropagation();
          if (hidden.has(l.label)) hidden.delete(l.label); else hidden.add(l.label);
          plots.filter(p => p.chart.series.some(s => s.label === l.label)).forEach(p => p.draw(true));
        };
        row.addEventListener("click", toggle, true);
        row.addEventListener("keydown", event => { if (event.key === "Enter") toggle(event); });
      });
    }
  }

  const enliven = holder => {
    const charts = JSON.parse(holder.dataset.charts);
    if (!charts.length) return;
    const grid = make("div", "charts");
    holder.prepend(grid);
    holder.classList.add("live");
    // All panels first: the width of one depends on how many there are.
    charts.map(chart => new Panel(chart, grid)).forEach(panel => panel.draw(false));
    const image = holder.querySelector("img");
    const links = make("p", "note saved", "For a paper: ");
    const link = make("a", "", "this figure as SVG");
    link.href = image.src;
    link.download = `${holder.dataset.name}.svg`;
    links.append(link);
    holder.append(links);
  };

  // Numbers sort as numbers: 1,234 and 97.50 ± 0.30 %, > 300, 1.2e-05. Durations by their seconds.
  const value = text => {
    const clean = text.replace(/,(?=\d{3})/g, "").replace(/\u2212/g, "-").replace(/^[>\s]+/, "");
    const time = clean.match(/^(?:(\d+) h )?(?:(\d+) min ?)?(?:([\d.]+) s)?$/);
    if (time && time[0]) return 3600 * (time[1] || 0) + 60 * (time[2] || 0) + Number(time[3] || 0);
    const found = clean.match(/^[-+]?\d+(\.\d+)?(e[-+]?\d+)?/i);
    return found ? Number(found[0]) : null;
  };
  const sortable = figure => {
    const table = figure.querySelector("table"), body = table.tBodies[0];
    if (body.rows.length < 3) return;
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      head.tabIndex = 0;
      head.classList.add("sorts");
      head.title = "sort";
      const sort = () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        [...table.tHead.rows[0].cells].forEach(other => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const rows = [...body.rows].map(row => ({ row, text: row.cells[column].textContent.trim() }));
        const numeric = rows.every(({ text }) => value(text) !== null || text === "" || text === "\u2013");
        rows.sort((a, b) => {
          if (!numeric) return a.text.localeCompare(b.text) * (down ? -1 : 1);
          const [x, y] = [value(a.text), value(b.text)];
          if (x === null || y === null) return (x === null) - (y === null);
          return (x - y) * (down ? -1 : 1);
        });
        rows.forEach(({ row }) => body.append(row));
      };
      head.addEventListener("click", sort);
      head.addEventListener("keydown", event => { if (event.key === "Enter") sort(); });
    });
    if (body.rows.length > 7) {
      const filter = Object.assign(make("input", "filter"), { type: "search", placeholder: "filter rows" });
      filter.setAttribute("aria-label", "filter rows");
      filter.addEventListener("input", () => {
        const wanted = filter.value.toLowerCase();
        [...body.rows].forEach(row => { row.hidden = !row.textContent.toLowerCase().includes(wanted); });
      });
      figure.querySelector(".scroll").before(filter);
    }
  };

  document.querySelectorAll("[data-charts]").forEach(enliven);
  document.querySelectorAll("figure.table").forEach(sortable);
  let width = innerWidth;
  const again = () => plots.forEach(p => p.draw(true));
  addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; again(); } });
  dark.addEventListener("change", again);
  document.documentElement.classList.add("scripted");
})();
