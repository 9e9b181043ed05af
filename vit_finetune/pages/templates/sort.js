"use strict";
// A head of a table becomes a button that sorts it: text upwards first, numbers downwards first, missing values last.
for (const table of document.querySelectorAll("table[data-sortable]")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const isText = !head.classList.contains("number");
      const was = head.getAttribute("aria-sort");
      const upwards = was ? was === "descending" : isText;
      const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
      const rows = [...table.tBodies[0].rows].map((row) => [key(row), row]);
      rows.sort(([one], [other]) => {
        if (one === "" || other === "") return (one === "") - (other === "");
        const order = isText ? one.localeCompare(other, undefined, { numeric: true }) : Number(one) - Number(other);
        return upwards ? order : -order;
      });
      table.tBodies[0].append(...rows.map(([, row]) => row));
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", upwards ? "ascending" : "descending");
    });
  });
}
