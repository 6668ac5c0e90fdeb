// Steps through results, a list of all messages; returns by what the server knows this tab when it is loaded again.
() => {
  window.step = (name) => {
    const results = [...document.querySelectorAll("#results .thumbnail-lg")];
    const chosen = results.findIndex((result) => result.classList.contains("selected"));
    results[(chosen + (name === "back" ? -1 : 1) + results.length) % results.length]?.click();
  };
  addEventListener("keydown", (event) => {
    const name = { ArrowLeft: "back", ArrowRight: "forward", Escape: "close" }[event.key];
    if (!event.target.closest("input, textarea, canvas, [role=tab]")) document.getElementById(name)?.click();
  });
  new MutationObserver((changes) => {
    for (const node of changes.flatMap((change) => [...change.addedNodes])) {
      const text = node.querySelector?.("[data-testid=toast-text]")?.innerText;
      const line = document.createElement("li");
      line.textContent = `${new Date().toLocaleTimeString()} ${text}`;
      if (text) document.querySelector("#messages ol").prepend(line);
    }
  }).observe(document.body, { childList: true, subtree: true });
  return [null, (sessionStorage.token ??= crypto.randomUUID())];
}
