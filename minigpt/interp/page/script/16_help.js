// The view with the help, which page.html holds

const helpView = {
  id: "help", title: "Help", available: () => true,
  paint: surprisalPaint,
  read: (run) => `${named(run, state.cursor)}: ${surprisalText(run, state.cursor)}`,
  start() {},
  show() {},
};

