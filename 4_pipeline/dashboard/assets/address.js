/* The address bar: links change the page without a reload, what the reader sets goes into the query, back and forward
   work. Dash's own Location keeps no state without a new entry in the history, so a slider would fill it. */
(function () {
  "use strict";
  const here = () => location.pathname + location.search;
  const show = () => window.dash_clientside.set_props("requested", { data: here() });
  // A page that has just come calls, too: then there is nothing to go back to.
  const is_change = () => window.dash_clientside.callback_context.triggered_id !== undefined;
  const kept = {};  // what the reader set on each page, by the page's link
  let resting;

  /** Put a query into the address bar: as a step that `back` undoes, or in place of what is there. */
  function keep(query, is_step) {
    const wanted = location.pathname + (query ? "?" + query : "");
    if (wanted === here()) return false;
    history[is_step ? "pushState" : "replaceState"](null, "", wanted);
    return true;
  }

  document.addEventListener("click", (event) => {
    const link = event.target.closest("a.inside");
    if (!link || event.defaultPrevented || event.button || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    const page = link.getAttribute("href");
    const current = document.querySelector("#navigation [aria-current]");
    if (current) kept[current.getAttribute("href")] = location.search;
    const wanted = page + ((link !== current && link.closest("#navigation") && kept[page]) || "");
    if (wanted !== here()) history.pushState(null, "", wanted);
    show();
    window.scrollTo(0, 0);
    document.getElementById("page").focus({ preventScroll: true });
  });
  window.addEventListener("popstate", show);

  window.dash_clientside = Object.assign({}, window.dash_clientside, {
    address: {
      name_window: function ([address, title]) {
        document.title = title;
        // The first layout is that of the referrer; a browser that sends none asks here.
        if (address !== here()) show();
      },
      keep_period: function (start, end, latest) {
        if (!start || !end || !document.getElementById("comparison")) return;
        const is_latest = latest && start === latest[0] && end === latest[1];
        keep(is_latest ? "" : new URLSearchParams({ from: start, to: end }).toString(), is_change());
      },
      keep_sliders: function (...values) {
        const first = values.pop();
        const set = first.map(([name, value], number) => [name, values[number], value])
          .filter(([_name, value, before]) => Number(value) !== before).map(([name, value]) => [name, value]);
        const path = location.pathname;
        clearTimeout(resting);
        resting = setTimeout(() => {
          if (location.pathname !== path) return;
          const is_new = keep(new URLSearchParams(set).toString(), false);
          if (is_new) window.dash_clientside.set_props("what-if-rest", { data: values });
        }, 150);
      },
      download: (clicks, file) => (clicks && file) || window.dash_clientside.no_update,
    },
  });
})();
