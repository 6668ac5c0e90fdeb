element.addEventListener("click", (event) => {
  const figure = event.target.closest("figure");
  if (figure) trigger("click", { index: [...figure.parentNode.children].indexOf(figure) });
});
