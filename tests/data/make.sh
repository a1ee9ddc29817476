set -eu
export GRIMMGEN_HOME=/tmp/compat/home GRIMMGEN_KERNEL=native OMP_NUM_THREADS=1
G=/tmp/base/.venv/bin/grimmgen
rm -rf $GRIMMGEN_HOME; mkdir -p /tmp/compat/expected
small="--corpus sampler --quiet --hidden 5 --batch-size 24 --unroll 40 --min-count 60 --epochs 2 --random-seed 3 --precision fp32"
t() { name=$1; shift; $G train --run "$name" $small "$@" >/dev/null; }
t lstm --lr 0.01
t peephole --cell peephole --lr 0.01 --layers 2
t gru --cell gru --lr 0.01 --no-reset-state
t mogrifier --cell mogrifier --embedding 4 --rounds 3 --lr 0.01
t mogrifier-tied --cell mogrifier --embedding 4 --rounds 0 --tied --layers 2 --lr 0.01
t preset-tutorial --preset tutorial
t preset-quick --preset quick
t preset-strong --preset strong --embedding 4
t preset-large --preset large --embedding 4
t every-option --cell gru --layers 2 --embedding 4 --tied --init xavier --lr 0.01 --clip 1 --dropout 0.1 --dropout-mode locked --input-dropout 0.1 --weight-drop 0.1 --weight-decay 0.1 --schedule plateau --decay-factor 0.3 --decay-patience 1 --ngram 3 --min-count 30 --keep-case --newlines space --phases
cat > /tmp/compat/story.txt <<'S'
There was once a miller who had three sons, a mill, an ass and a cat.
The King said: "Whoever guesses the riddle shall have my daughter"; nobody did.
S
for run in $(ls $GRIMMGEN_HOME/data/runs); do
  d=/tmp/compat/expected/$run; mkdir -p $d
  $G eval --run $run --split test --json --quiet > $d/eval.json
  $G eval --run $run --dynamic --json --quiet /tmp/compat/story.txt > $d/dynamic.json
  $G generate --run $run --random-seed 7 --length 300 --json --quiet > $d/top-3.json
  $G generate --run $run --random-seed 8 --length 200 --seed "the king" --top-k 0 --temperature 0.8 --stories 2 --json --quiet > $d/tempered.json
  $G generate --run $run --random-seed 9 --length 200 --seed "a cat" --top-p 0.9 --repetition-penalty 1.2 --json --quiet > $d/top-p.json
  $G generate --run $run --random-seed 10 --length 200 --seed "the " --beam-width 3 --beam-depth 4 --json --quiet > $d/beams.json
  $G generate --run $run --random-seed 11 --length 200 --max-copy 6 --json --quiet > $d/max-copy.json
done
du -sh $GRIMMGEN_HOME/data/runs
# A resume by one epoch, of a copy.
cp -r $GRIMMGEN_HOME /tmp/compat/resumed
for run in $(ls $GRIMMGEN_HOME/data/runs); do
  GRIMMGEN_HOME=/tmp/compat/resumed $G train --resume --run $run --epochs 3 --json \
    | grep '"event": "evaluated"' > /tmp/compat/expected/$run/resume.json
done
