//! Every `nf …` in a document or a help text is one that the real parser takes. It
//! does not run them; tests/integration/test_readme.py runs those of the README and the pages for operators.

use crate::tree;
use clap::CommandFactory;
use neural_fabric::cli::Cli;

/// The words of a command, up to a pipe or a list operator; quotes as a shell has them.
fn words(line: &str) -> Vec<String> {
    let (mut out, mut word, mut quote, mut open) = (Vec::new(), String::new(), None, false);
    for c in line.chars() {
        match (quote, c) {
            (Some(q), c) if c == q => quote = None,
            (Some(_), c) => word.push(c),
            (None, '\'' | '"') => (quote, open) = (Some(c), true),
            (None, '|' | '&' | ';' | '>') => break,
            (None, c) if c.is_whitespace() => {
                if open {
                    out.push(std::mem::take(&mut word));
                }
                open = false;
            }
            (None, c) => {
                word.push(c);
                open = true;
            }
        }
    }
    if open {
        out.push(word);
    }
    out
}

fn parses(line: &str) -> Result<(), String> {
    match Cli::command().try_get_matches_from(words(line)) {
        Ok(_) => Ok(()),
        // --help and --version are answers, too.
        Err(error) if !error.use_stderr() => Ok(()),
        Err(error) => Err(format!("`{line}`: {error}")),
    }
}

#[test]
fn every_nf_command_in_the_documents_parses() {
    let mut documents = tree::sources(&["docs", "chaos"], &["md"]);
    documents.push(tree::read("README.md"));
    let mut wrong = Vec::new();
    for document in &documents {
        let lines = document.text.replace("\\\n", " ");
        let commands = lines.lines().map(str::trim).filter(|line| line.starts_with("nf "));
        // A comment after the command is the document's, not the shell's, to us.
        let commands = commands.map(|line| line.split(" # ").next().unwrap_or(line));
        wrong.extend(commands.filter_map(|c| parses(c).err()).map(|e| format!("{}: {e}", document.path)));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Every leaf command with its path.
fn leaves(command: &clap::Command, path: &str, out: &mut Vec<(String, clap::Command)>) {
    let subcommands: Vec<_> = command.get_subcommands().filter(|c| c.get_name() != "help").collect();
    for subcommand in &subcommands {
        leaves(subcommand, &format!("{path} {}", subcommand.get_name()), out);
    }
    if subcommands.is_empty() {
        out.push((path.to_owned(), command.clone()));
    }
}

#[test]
fn every_example_in_a_help_text_parses_and_there_are_two() {
    let mut all = Vec::new();
    leaves(&Cli::command(), "nf", &mut all);
    let mut wrong = Vec::new();
    for (path, command) in all {
        let after = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        let examples: Vec<&str> = after.lines().map(str::trim).filter(|line| line.starts_with("nf ")).collect();
        if examples.len() < 2 && path.split(' ').count() == 2 && path != "nf version" {
            wrong.push(format!("{path} --help: {} examples, two are promised", examples.len()));
        }
        wrong.extend(examples.iter().filter_map(|e| parses(e).err()).map(|e| format!("{path} --help: {e}")));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn words_are_split_as_a_shell_does() {
    assert_eq!(words("nf a 'b c' --x=\"d e\" || true"), ["nf", "a", "b c", "--x=d e"]);
}
