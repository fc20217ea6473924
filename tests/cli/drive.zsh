# drive.zsh FOLDER LINE...: what TAB offers at the end of each line, a candidate per line, after the line in [].
# FOLDER holds _gpuq. A shell of its own runs in a pseudo-terminal, and its `compadd` tells what it is given.

zmodload zsh/zpty
zpty z PS1= zsh -f -i
zpty -w z "PS1= ; PROMPT_EOL_MARK=; stty -echo; fpath=($1 \$fpath); autoload -Uz compinit; compinit -D -u
compadd() {
    if [[ \${@[1,(i)(-|--)]} == *-(O|A|D)\ * ]]; then builtin compadd \"\$@\"; return; fi
    local -a hits; builtin compadd -A hits \"\$@\"
    (( \$#hits )) && print -r -- \"\${(F)\${(@)hits/#/HIT }}\"
    builtin compadd \"\$@\"
}
report() { compstate[insert]=; compstate[list]=; }
zle -C capture complete-word _generic2
_generic2() { _main_complete; report; print -r -- DONE; zle_bracketed_paste=(); }
bindkey '^I' capture
bindkey '^U' kill-whole-line
print READY"
zpty -r z out '*READY*'
shift
for line in "$@"; do
    zpty -w -n z "$line"$'\t'
    zpty -r z out '*DONE*'
    print -r -- "[$line]"
    for shown in ${(f)out//$'\r'/}; do
        [[ $shown == *HIT\ * ]] && print -r -- "${shown##*HIT }"
    done
    zpty -w -n z $'\x15'
done
zpty -d z
