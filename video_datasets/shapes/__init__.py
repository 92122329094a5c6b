"""The embedded data set "shapes": small real videos of coloured shapes that move in distinct ways.

A class is a colour, a shape and a motion, in words: "red square moving sideways". 6 x 2 x 4 factors make 48 classes.
12 of them are held out of the zero-shot training, chosen so that every pair of factor values still occurs in it, and
so that the held-out classes come as six (colour, shape) pairs of two motions each, a different pair of motions each: a
model that recognises colour and shape but not the motion is right half of the time at most (on the base classes a
third of the time).

No single frame shows the motion: colour, shape, size, background and length do not depend on it, and every position
occurs in several motions. All paths lie in one disc. Straight paths are chords of it, traversed back and forth at
constant speed; circles go round its centre. The position in one frame is only a hint: the best guess from it is right
in 40 % of the frames (chance: 25 %), while the positions in eight frames determine the motion. Encoding preserves this:
every frame is encoded independently (no motion compensation, a constant quantiser), so coding artefacts carry no
information about other frames.

Layout of the folder that `make_shapes` creates:

    videos/<class>_<number>.mp4            numbers below `train_clips` are the training clips
    labels/{all,base,held_out,b2n_base,b2n_novel}.csv    class names (id,name)
    lists/{train,val,test}_zero_shot.txt   base classes | other clips of the base classes | held-out classes
    lists/train_few_shot_{K}.txt, val_few_shot.txt       K clips per class, all classes
    lists/train_base2novel_seed{1,2,3}.txt, val_base2novel_{base,novel}.txt
    lists/{train,val}_fully_supervised.txt  all classes
    overview.png                            six clips to look at, one per row
    manifest.json                           settings, their hash, every file with its size; written last
"""
