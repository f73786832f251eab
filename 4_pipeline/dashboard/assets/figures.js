/* What a reader does with the mouse in the comparison: a stretch of time becomes the period, a figure a picture. */
window.dash_clientside = Object.assign({}, window.dash_clientside, {
  figures: {
    choose_range: function (zoomed, drawn) {
      const { no_update, callback_context } = window.dash_clientside;
      const is_strip = callback_context.triggered_id === "overview";
      const range = is_strip ? drawn && drawn.range && drawn.range.x
        : zoomed && [zoomed["xaxis2.range[0]"], zoomed["xaxis2.range[1]"]];
      return range && range[0] ? range.map((time) => String(time).slice(0, 10)) : [no_update, no_update];
    },
    take_typed: (typed, value) => typed === null || typed === Number(value) ? window.dash_clientside.no_update : typed,
    save_picture: function () {
      const figure = document.querySelector("#comparison-figure .js-plotly-plot");
      const period = ["first-day", "last-day"].map((id) => document.getElementById(id).value).join(" to ");
      window.Plotly.downloadImage(figure, { format: "png", width: 1400, height: 700, scale: 2, filename: `power ${period}` });
    },
  },
});
