"""The completion scripts of bash, zsh and fish as text. Pure."""

from collections.abc import Iterable, Sequence

from gpuq.cli.completion import INSTALL, Entry, Option
from gpuq.model import State

STATES = [state.value for state in State]
HEAD = "# Made by `gpuq completion {}`; not to be edited.\n"


def _verbs(entries: Sequence[Entry]) -> list[Entry]:
    return [entry for entry in entries if len(entry.words) == 1]


def _subverbs(entries: Sequence[Entry], group: str) -> list[Entry]:
    return [entry for entry in entries if len(entry.words) == 2 and entry.words[0] == group]


# --- bash -----------------------------------------------------------------------------------------

_BASH = r"""
# Sets verb, and sub for a group; at is the index of the first word after them.
_gpuq_parse() {
    verb= sub= at=1
    while ((at < COMP_CWORD)) && [[ ${COMP_WORDS[at]} == -* ]]; do ((at++)); done
    ((at < COMP_CWORD)) || return
    verb=${COMP_WORDS[at++]}
    case $verb in
        @GROUPS@)
            ((at < COMP_CWORD)) && sub=${COMP_WORDS[at++]}
            ;;
    esac
}

# The index of the first word of the command that is submitted, or 0 while options are being typed.
_gpuq_command() {
    local i=$at
    while ((i <= COMP_CWORD)); do
        if [[ ${COMP_WORDS[i]} == -- ]]; then
            ((i < COMP_CWORD)) && echo $((i + 1)) || echo 0
            return
        elif [[ ${COMP_WORDS[i]} != -* ]]; then
            echo "$i"
            return
        elif [[ ${COMP_WORDS[i + 1]-} == = ]]; then
            ((i += 3))
        elif [[ " $values " == *" ${COMP_WORDS[i]} "* ]]; then
            ((i += 2))
        else
            ((i++))
        fi
        # `ok:12` arrives as three words
        while [[ ${COMP_WORDS[i]-} == : ]]; do ((i += 2)); done
    done
    echo 0
}

_gpuq_ids() {
    COMPREPLY=($(compgen -W "@last $(gpuq complete-ids "$1" 2>/dev/null | cut -f1)" -- "$cur"))
    compopt -o nosort 2>/dev/null
}

_gpuq() {
    local cur=${COMP_WORDS[COMP_CWORD]} verb sub at options values argument start first=$COMP_CWORD previous
    COMPREPLY=()
    _gpuq_parse
    case "$verb${sub:+ $sub}" in
@CASES@
    esac
    if [[ $argument == command ]]; then
        start=$(_gpuq_command)
        if ((start > 0)); then
            if declare -F _command_offset >/dev/null; then
                _command_offset "$start"
            elif ((start == COMP_CWORD)); then
                COMPREPLY=($(compgen -c -- "$cur"))
                compopt -o default 2>/dev/null
            else
                compopt -o default 2>/dev/null
            fi
            return
        fi
    fi
    # bash splits words at = and :, so that `--state=run` and `ok:1` are three words
    [[ $cur == [=:] ]] && cur=
    while ((first > 1)) && [[ ${COMP_WORDS[first]} == [=:] || ${COMP_WORDS[first - 1]} == [=:] ]]; do ((first--)); done
    previous=${COMP_WORDS[first - 1]}
    ((first < COMP_CWORD)) && [[ ${COMP_WORDS[first]} == -* ]] && previous=${COMP_WORDS[first]}
    if [[ " $values " == *" $previous "* ]]; then
        case $verb:$previous in
@VALUES@
        esac
        return
    fi
    if [[ $cur == -* ]]; then
        COMPREPLY=($(compgen -W "$options" -- "$cur"))
        return
    fi
    case $argument in
        ids:*) _gpuq_ids "${argument#ids:}" ;;
        shells) COMPREPLY=($(compgen -W "@SHELLS@" -- "$cur")) ;;
        files) compopt -o default 2>/dev/null ;;
        words:*) COMPREPLY=($(compgen -W "${argument#words:}" -- "$cur")) ;;
    esac
}

complete -F _gpuq gpuq
"""

_BASH_VALUE = {
    "files": "compopt -o default 2>/dev/null",
    "folders": 'compopt -o default -o dirnames 2>/dev/null; COMPREPLY=($(compgen -d -- "$cur"))',
    "states": f'COMPREPLY=($(compgen -W "{" ".join(STATES)}" -- "$cur"))',
    "ids": "_gpuq_ids all",
}


def bash(entries: Sequence[Entry]) -> str:
    """The script for bash 4.4 and later; works without the package bash-completion."""
    groups = [entry.words[0] for entry in entries if entry.argument == "verbs"]
    cases = [_bash_case("", ("-h", "--help", "--version"), (), "words:" + _words(_verbs(entries)))]
    for entry in entries:
        argument = entry.argument
        if argument == "verbs":
            argument = "words:" + _words(_subverbs(entries, entry.words[0]))
        names = [name for option in entry.options for name in option.names]
        values = [name for option in entry.options if option.value for name in option.names]
        cases.append(_bash_case(" ".join(entry.words), names, values, argument))
    text = _BASH.replace("@GROUPS@", " | ".join(groups)).replace("@CASES@", "\n".join(cases))
    text = text.replace("@VALUES@", "\n".join(_bash_values(entries))).replace("@SHELLS@", " ".join(INSTALL))
    return HEAD.format("bash") + text


def _words(entries: Iterable[Entry]) -> str:
    return " ".join(entry.words[-1] for entry in entries)


def _bash_case(words: str, names: Iterable[str], values: Iterable[str], argument: str) -> str:
    return (
        f'        "{words}")\n'
        f'            options="{" ".join(names)}"\n'
        f'            values="{" ".join(values)}"\n'
        f'            argument="{argument}"\n'
        "            ;;"
    )


def _bash_values(entries: Iterable[Entry]) -> Iterable[str]:
    for entry in entries:
        for option in entry.options:
            if option.value in _BASH_VALUE:
                patterns = " | ".join(f"{entry.words[0]}:{name}" for name in option.names)
                yield f"            {patterns}) {_BASH_VALUE[option.value]} ;;"


# --- zsh ------------------------------------------------------------------------------------------

_ZSH = r"""
_gpuq_ids() {
    local -a found
    local line
    for line in ${(f)"$(gpuq complete-ids $1 2>/dev/null)"}; do
        found+=("${line%%$'\t'*}:${line#*$'\t'}")
    done
    found+=('@last:the newest job')
    _describe -V job found
}

_gpuq_after() {
    compset -P '*[,|]'
    compset -P '(ok|any|failed|started):'
    compset -P '(array|each):'
    _gpuq_ids all
}

_gpuq_states() {
    _values -s , state @STATES@
}

_gpuq() {
    local curcontext=$curcontext state line
    local -a verbs
    _arguments -C \
        '(- *)'{-h,--help}'[show the help]' \
        '(- *)--version[print the version]' \
        '1: :->verb' \
        '*:: :->rest'
    case $state in
        verb)
            verbs=(
@VERBS@
            )
            _describe verb verbs
            ;;
        rest)
            curcontext=${curcontext%:*}-$words[1]:
            case $words[1] in
@CASES@
            esac
            ;;
    esac
}
"""

_ZSH_VALUE = {
    "files": ":file:_files",
    "folders": ":folder:_files -/",
    "states": ":state:_gpuq_states",
    "ids": ":job:_gpuq_after",
    "text": ":value: ",
}


def zsh(entries: Sequence[Entry]) -> str:
    """The script for zsh, to be autoloaded from $fpath as _gpuq."""
    verbs = "\n".join(f"                {_zsh_pair(entry)}" for entry in _verbs(entries))
    cases = "\n".join(_zsh_case(entry, entries) for entry in _verbs(entries))
    text = _ZSH.replace("@VERBS@", verbs).replace("@CASES@", cases).replace("@STATES@", " ".join(STATES))
    call = '\nif [ "$funcstack[1]" = "_gpuq" ]; then\n    _gpuq "$@"\nelse\n    compdef _gpuq gpuq\nfi\n'
    return "#compdef gpuq\n" + HEAD.format("zsh") + text + call


def _zsh_pair(entry: Entry) -> str:
    return _quote(f"{entry.words[-1]}:{entry.help}")


def _zsh_case(entry: Entry, entries: Sequence[Entry]) -> str:
    pad = " " * 16
    if entry.argument != "verbs":
        return f"{pad}{entry.words[0]})\n{_zsh_arguments(entry, pad + '    ')}\n{pad}    ;;"
    subs = _subverbs(entries, entry.words[0])
    pairs = " ".join(_zsh_pair(sub) for sub in subs)
    inner = "\n".join(
        f"{pad}        {sub.words[1]})\n{_zsh_arguments(sub, pad + ' ' * 12)}\n{pad}            ;;" for sub in subs
    )
    return (
        f"{pad}{entry.words[0]})\n"
        f"{pad}    if ((CURRENT == 2)); then\n"
        f"{pad}        verbs=({pairs})\n"
        f"{pad}        _describe verb verbs\n"
        f"{pad}        return\n"
        f"{pad}    fi\n"
        f"{pad}    shift words\n"
        f"{pad}    ((CURRENT--))\n"
        f"{pad}    case $words[1] in\n{inner}\n{pad}    esac\n"
        f"{pad}    ;;"
    )


def _zsh_arguments(entry: Entry, pad: str) -> str:
    specs = [_zsh_option(option) for option in entry.options]
    if entry.argument == "command":
        # as for nohup and sudo: what follows is another command's line
        specs += ["'(-):command: _command_names -e'", "'*::arguments: _normal'"]
    elif entry.argument.startswith("ids:"):
        specs.append(_quote(f"*:job: _gpuq_ids {entry.argument.removeprefix('ids:')}"))
    elif entry.argument == "shells":
        specs.append(_quote(f"1:shell:({' '.join(INSTALL)})"))
    elif entry.argument == "files":
        specs.append("'1:file:_files'")
    return f"{pad}_arguments -s -S \\\n" + " \\\n".join(f"{pad}    {spec}" for spec in specs)


def _zsh_option(option: Option) -> str:
    text = option.help.replace("\\", "\\\\").replace("[", "\\[").replace("]", "\\]").replace(":", "\\:")
    value = _ZSH_VALUE[option.value] if option.value else ""
    if option.names == ("-h", "--help"):
        return "'(- *)'{-h,--help}" + _quote(f"[{text}]")
    many = "*" if option.repeatable else f"({' '.join(option.names)})"
    if len(option.names) == 1:
        return _quote(f"{many}{option.names[0]}[{text}]{value}")
    return f"{_quote(many)}{{{','.join(option.names)}}}{_quote(f'[{text}]{value}')}"


def _quote(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


# --- fish -----------------------------------------------------------------------------------------

_FISH = r"""
# The words after gpuq and its own options, without the one being typed.
function __gpuq_words
    set -l words (commandline -opc)[2..-1]
    while set -q words[1]; and string match -q -- '-*' $words[1]
        set -e words[1]
    end
    string join \n -- $words
end

function __gpuq_no_verb
    set -l words (__gpuq_words)
    not set -q words[1]
end

# Whether the verb is the first argument, and the second, if given, the verb of its group.
function __gpuq_verb
    set -l words (__gpuq_words)
    test "$words[1]" = $argv[1]; or return 1
    set -q argv[2]; or return 0
    test "$words[2]" = $argv[2]
end

function __gpuq_group
    set -l words (__gpuq_words)
    test "$words[1]" = $argv[1]; and not set -q words[2]
end

# The words of the command that is submitted; fails while options of ours are being typed.
function __gpuq_command
    set -l words (__gpuq_words)
    contains -- "$words[1]" @COMMANDS@; or return 1
    set -e words[1]
    while set -q words[1]
        switch $words[1]
            case --
                set -e words[1]
                string join \n -- $words
                return 0
            case @VALUES@
                set -e words[1]
                set -e words[1]
            case '-*'
                set -e words[1]
            case '*'
                string join \n -- $words
                return 0
        end
    end
    # nothing but options so far: the command begins here, unless an option or its value is being typed
    string match -q -- '-*' (commandline -ct); and return 1
    set -l words (__gpuq_words)
    not contains -- "$words[-1]" @VALUES@
end

function __gpuq_options
    __gpuq_verb $argv; or return 1
    contains -- "$argv[1]" @COMMANDS@; or return 0
    set -l command (__gpuq_command); or return 0
    set -l words (__gpuq_words)
    not set -q command[1]; and test "$words[-1]" != --
end

function __gpuq_complete_command
    set -l command (string escape -- (__gpuq_command)) (commandline -ct)
    complete -C"$command"
end

function __gpuq_ids
    gpuq complete-ids $argv[1] 2>/dev/null
    echo @last\t'the newest job'
end

function __gpuq_after
    set -l before '^(?:.*[,|])?(?:(?:ok|any|failed|started):)?(?:(?:array|each):)?'
    set -l prefix (string match -r $before -- (commandline -ct))
    __gpuq_ids all | string replace -r '^' -- "$prefix"
end

complete -c gpuq -f
complete -c gpuq -n __gpuq_no_verb -s h -l help -d 'Show the help'
complete -c gpuq -n __gpuq_no_verb -l version -d 'Print the version'
complete -c gpuq -n __gpuq_command -a '(__gpuq_complete_command)'
"""

_FISH_VALUE = {
    "files": " -r -F",
    "folders": " -x -a '(__fish_complete_directories (commandline -ct))'",
    "states": f" -x -a '{' '.join(STATES)}'",
    "ids": " -x -a '(__gpuq_after)'",
    "text": " -x",
    "": "",
}


def fish(entries: Sequence[Entry]) -> str:
    """The script for fish 3.1 and later."""
    commands = [entry for entry in entries if entry.argument == "command"]
    values = {n: None for entry in commands for option in entry.options if option.value for n in option.names}
    text = _FISH.replace("@COMMANDS@", " ".join(entry.words[0] for entry in commands))
    lines = [text.replace("@VALUES@", " ".join(values))]
    for entry in entries:
        lines += _fish_entry(entry)
    return HEAD.format("fish") + "".join(lines)


def _fish_entry(entry: Entry) -> Iterable[str]:
    words = " ".join(entry.words)
    condition = "__gpuq_no_verb" if len(entry.words) == 1 else f"'__gpuq_group {entry.words[0]}'"
    yield f"complete -c gpuq -n {condition} -a {entry.words[-1]} -d {_fish_quote(entry.help)}\n"
    for option in entry.options:
        names = " ".join(f"-l {n[2:]}" if n.startswith("--") else f"-s {n[1:]}" for n in option.names)
        value = _FISH_VALUE[option.value]
        yield f"complete -c gpuq -n '__gpuq_options {words}' {names} -d {_fish_quote(option.help)}{value}\n"
    if entry.argument.startswith("ids:"):
        which = entry.argument.removeprefix("ids:")
        yield f"complete -c gpuq -n '__gpuq_verb {words}' -a '(__gpuq_ids {which})'\n"
    elif entry.argument == "shells":
        yield f"complete -c gpuq -n '__gpuq_verb {words}' -a '{' '.join(INSTALL)}'\n"
    elif entry.argument == "files":
        yield f"complete -c gpuq -n '__gpuq_verb {words}' -F\n"


def _fish_quote(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
