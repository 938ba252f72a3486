//! What the pictures of `nf sim` share. It draws nothing.

/// Lines' colours, told apart by people who see red and green alike.
pub const COLOURS: [&str; 9] =
    ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#555555", "#8d6e63", "#9aa0a6"];

/// Text that is safe between tags.
pub fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
