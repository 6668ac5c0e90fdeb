const choose = (event) => {
  const figure = event.target.closest("figure");
  if (figure) trigger("click", { index: [...figure.parentNode.children].indexOf(figure) });
};
element.addEventListener("click", choose);
element.addEventListener("keydown", (event) => { if (event.key === "Enter") choose(event); });
