// Keys for the opened result; returns by what the server knows this tab again when it is loaded once more.
() => {
  addEventListener("keydown", (event) => {
    const name = { ArrowLeft: "back", ArrowRight: "forward", Escape: "close" }[event.key];
    if (!event.target.closest("input, textarea, canvas, [role=tab]")) document.getElementById(name)?.click();
  });
  return sessionStorage.token ??= crypto.randomUUID();
}
