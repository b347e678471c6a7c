// Heads of tables become buttons that sort; without scripts, tables are as they are.
for (const table of document.querySelectorAll("table")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const body = table.tBodies[0];
      const value = (row) => {
        const cell = row.cells[column];
        return "order" in cell.dataset ? Number(cell.dataset.order) : cell.textContent;
      };
      // Numbers begin with the largest, names with the first.
      const numbers = [...body.rows].every((row) => typeof value(row) === "number");
      const before = head.ariaSort;
      const up = before ? before === "descending" : !numbers;
      const sign = up ? 1 : -1;
      const compare = numbers
        ? (a, b) => value(a) - value(b) || 0
        : (a, b) => String(value(a)).localeCompare(String(value(b)), "en", { numeric: true });
      body.append(...[...body.rows].sort((a, b) => sign * compare(a, b)));
      for (const other of heads) other.removeAttribute("aria-sort");
      head.ariaSort = up ? "ascending" : "descending";
    });
  });
}
