//! The fenced blocks of a Markdown page, and the commands with their output in them.

/// A fenced block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// The info string, such as `console`.
    pub info: String,
    /// The lines inside the fences.
    pub text: String,
}

/// All fenced blocks of a page.
pub fn blocks(page: &str) -> Vec<Block> {
    let (mut blocks, mut open): (Vec<Block>, bool) = (Vec::new(), false);
    for line in page.lines() {
        match (line.trim_start().strip_prefix("```"), open) {
            (Some(info), false) => blocks.push(Block { info: info.to_owned(), text: String::new() }),
            (None, true) => {
                let text = &mut blocks.last_mut().expect("an open block").text;
                text.push_str(line);
                text.push('\n');
                continue;
            }
            (None, false) => continue,
            (Some(_), true) => {}
        }
        open = !open;
    }
    blocks
}

/// The commands of a block, each with the output that the page shows.
pub fn commands(block: &Block) -> Vec<(String, String)> {
    let parts = format!("\n{}", block.text);
    let parts = parts.split("\n$ ").skip(1).map(|part| part.split_once('\n').unwrap_or((part, "")));
    parts.map(|(command, shown)| (command.to_owned(), shown.trim_end().to_owned())).collect()
}

/// Whether a command printed what the page shows. `…` stands for any text.
pub fn is_shown(printed: &str, shown: &str) -> bool {
    let (printed, mut parts) = (printed.trim_end(), shown.split('…'));
    let Some(mut rest) = parts.next().and_then(|first| printed.strip_prefix(first)) else { return false };
    let mut parts: Vec<&str> = parts.collect();
    let Some(last) = parts.pop() else { return rest.is_empty() };
    for part in parts {
        let Some((_, after)) = rest.split_once(part) else { return false };
        rest = after;
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_split_into_blocks_and_commands() {
        let page = "a\n```console\n$ x 1\none\n\ntwo\n$ y\n```\nb\n```\nplain\n```\n";
        let blocks = blocks(page);
        let infos: Vec<&str> = blocks.iter().map(|block| block.info.as_str()).collect();
        assert_eq!(infos, ["console", ""]);
        assert_eq!(blocks[1].text, "plain\n");
        let expected = [("x 1", "one\n\ntwo"), ("y", "")].map(|(a, b)| (a.to_owned(), b.to_owned()));
        assert_eq!(commands(&blocks[0]), expected);
    }

    #[test]
    fn an_ellipsis_stands_for_any_text_and_all_else_must_be_equal() {
        for (shown, is) in [
            ("a b\nc", true),
            ("a b", false),
            ("b\nc", false),
            ("a …", true),
            ("…c", true),
            ("a…c", true),
            ("…", true),
            ("a…d…c", false),
            ("a…b…b…", false),
            ("", false),
        ] {
            assert_eq!(is_shown("a b\nc\n", shown), is, "{shown}");
        }
        assert!(is_shown("", "") && !is_shown("ab", "ab…b"));
    }
}
