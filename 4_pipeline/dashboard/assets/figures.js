/* Mouse actions on the page of the comparison: choose a period by dragging, download the figure, highlight a week in
   figure and table. */
const weeks = () => document.querySelectorAll("table.weeks tbody tr");
const [first, last] = ["from", "to"].map((name) => (row) => new URL(row.querySelector("a").href).searchParams.get(name));
function show_week(event) {
  const figure = document.querySelector("#comparison-figure .js-plotly-plot");
  const row = event.target.closest("table.weeks tbody tr");
  if (!figure || figure.week === row) return;
  figure.week = row;
  const shape = row && {
    type: "rect", xref: "x2", yref: "paper", x0: first(row), x1: last(row) + " 23:59", y0: 0, y1: 1,
    fillcolor: "rgb(107, 120, 133)", opacity: 0.2, line: { width: 0 }, layer: "below",
  };
  window.Plotly.relayout(figure, { shapes: shape ? [shape] : [] });
}
document.addEventListener("mouseover", show_week);
document.addEventListener("focusin", show_week);
window.dash_clientside = Object.assign({}, window.dash_clientside, {
  figures: {
    choose_range: function (zoomed, drawn, latest) {
      const { no_update, callback_context } = window.dash_clientside;
      const is_strip = callback_context.triggered_id === "overview";
      const range = is_strip ? drawn && drawn.range && drawn.range.x
        : zoomed && [zoomed["xaxis2.range[0]"], zoomed["xaxis2.range[1]"]];
      if (!is_strip && zoomed && zoomed["xaxis2.autorange"]) return latest;  // a double click
      return range && range[0] ? range.map((time) => String(time).slice(0, 10)) : [no_update, no_update];
    },
    // Drop a late response, for choices that the user has changed since.
    show_period: function ({ choices, values }, ...current) {
      const { callback_context, no_update } = window.dash_clientside, is_late = String(choices) !== String(current);
      return callback_context.outputs_list.map(({ id }) => is_late ? no_update : values[id]);
    },
    mark_week: function (hovered) {
      const day = hovered && String(hovered.points[0].x).slice(0, 10);
      for (const row of weeks()) row.classList.toggle("hovered", Boolean(day) && first(row) <= day && day <= last(row));
    },
    take_typed: (typed, value) => typed === null || typed === Number(value) ? window.dash_clientside.no_update : typed,
    save_picture: function () {
      const figure = document.querySelector("#comparison-figure .js-plotly-plot");
      const period = ["first-day", "last-day"].map((id) => document.getElementById(id).value).join(" to ");
      window.Plotly.downloadImage(figure, { format: "png", width: 1400, height: 700, scale: 2, filename: `power ${period}` });
    },
  },
});
