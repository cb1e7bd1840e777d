//! Columns for people.

/// How a cell looks on a terminal with colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Tone {
    #[default]
    Plain,
    Strong,
    Faint,
    Good,
    Warn,
    Bad,
}

impl Tone {
    /// The text in this tone; as it is where there are no colours.
    pub(crate) fn paint(self, text: &str, is_colored: bool) -> String {
        let code = match self {
            Self::Plain => return text.to_string(),
            Self::Strong => "1",
            Self::Faint => "2",
            Self::Good => "32",
            Self::Warn => "33",
            Self::Bad => "31",
        };
        if is_colored { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_string() }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Cell {
    text: String,
    tone: Tone,
}

impl Cell {
    pub(crate) fn new(text: impl Into<String>, tone: Tone) -> Self {
        Self { text: text.into(), tone }
    }
}

impl<T: std::fmt::Display> From<T> for Cell {
    fn from(text: T) -> Self {
        Self { text: text.to_string(), tone: Tone::Plain }
    }
}

/// Rows of cells. Numbers stand at the right of their column, everything else at the left.
#[derive(Debug, Default)]
pub(crate) struct Table {
    titles: Vec<&'static str>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    pub(crate) fn new(titles: &[&'static str]) -> Self {
        Self { titles: titles.to_vec(), rows: Vec::new() }
    }

    /// Two columns without titles.
    pub(crate) fn pairs() -> Self {
        Self::default()
    }

    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = Cell>) {
        self.rows.push(cells.into_iter().collect());
    }

    pub(crate) fn pair(&mut self, name: &str, value: impl Into<Cell>) {
        self.row([Cell::new(name, Tone::Faint), value.into()]);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// One line a row, each with its newline, no blanks at their ends.
    pub(crate) fn render(&self, is_colored: bool) -> String {
        let n_columns = self.rows.iter().map(Vec::len).chain([self.titles.len()]).max().unwrap_or(0);
        let column = |i: usize| self.rows.iter().filter_map(move |row| row.get(i));
        let widths: Vec<usize> = (0..n_columns)
            .map(|i| {
                let title = self.titles.get(i).map_or(0, |t| width(t));
                column(i).map(|cell| width(&cell.text)).chain([title]).max().unwrap_or(0)
            })
            .collect();
        let is_right: Vec<bool> = (0..n_columns)
            .map(|i| {
                !self.titles.is_empty()
                    && column(i).any(|c| is_number(&c.text))
                    && column(i).all(|c| is_number(&c.text) || matches!(c.text.as_str(), "" | "-"))
            })
            .collect();
        let mut out = String::new();
        let mut line = |cells: &[Cell]| {
            let mut text = String::new();
            for (i, cell) in cells.iter().enumerate() {
                let pad = " ".repeat(widths[i] - width(&cell.text));
                let painted = cell.tone.paint(&cell.text, is_colored);
                let is_last = i + 1 == cells.len();
                match (is_right[i], is_last) {
                    (true, _) => text.extend([pad.as_str(), &painted]),
                    (false, true) => text.push_str(&painted),
                    (false, false) => text.extend([&painted, pad.as_str()]),
                }
                if !is_last {
                    text.push_str("  ");
                }
            }
            out.push_str(text.trim_end());
            out.push('\n');
        };
        if !self.titles.is_empty() {
            let titles: Vec<Cell> = self.titles.iter().map(|t| Cell::new(*t, Tone::Faint)).collect();
            line(&titles);
        }
        for row in &self.rows {
            line(row);
        }
        out
    }
}

fn width(text: &str) -> usize {
    text.chars().count()
}

/// A count, perhaps with a sign or a fraction; not a duration or an address.
fn is_number(text: &str) -> bool {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    digits.starts_with(|c: char| c.is_ascii_digit()) && digits.chars().all(|c| c.is_ascii_digit() || c == '.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stand_at_the_right_and_lines_end_without_blanks() {
        let mut table = Table::new(&["NODE", "HEAD", "NOTE"]);
        table.row(["n1".into(), 5.into(), "".into()]);
        table.row(["node-22".into(), 1234.into(), "fit".into()]);
        table.row(["n3".into(), "-".into(), "".into()]);
        assert_eq!(
            table.render(false),
            "NODE     HEAD  NOTE\nn1          5\nnode-22  1234  fit\nn3          -\n"
        );
    }

    #[test]
    fn colours_do_not_count_as_width() {
        let mut table = Table::pairs();
        table.pair("a", Cell::new("x", Tone::Bad));
        table.pair("long", "y");
        assert_eq!(table.render(false), "a     x\nlong  y\n");
        assert_eq!(table.render(true), "\x1b[2ma\x1b[0m     \x1b[31mx\x1b[0m\n\x1b[2mlong\x1b[0m  y\n");
    }

    #[test]
    fn rows_of_different_length() {
        let mut table = Table::new(&["A"]);
        table.row(["1".into(), "2".into()]);
        table.row([]);
        assert_eq!(table.render(false), "A\n1  2\n\n");
    }
}
